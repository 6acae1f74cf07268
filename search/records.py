"""What the ledger says of a trial: plain values that every view of a sweep is made from.

No Optuna here, so that schedulers, retention, leaderboard and the live table stay pure and light.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

Goal = Literal["maximize", "minimize"]
RulingKind = Literal["stop", "pause", "hold", "promote"]


class TrialState(StrEnum):
    """Where a trial is in its life."""

    RUNNING = "running"
    PAUSED = "paused"
    PRUNED = "pruned"
    """Stopped early: its results count, at the epochs that it reached."""
    COMPLETE = "complete"
    FAILED = "failed"
    DIVERGED = "diverged"
    """Its loss was no longer finite, so its region is to be avoided."""
    INFEASIBLE = "infeasible"
    """Could not run as drawn (it fits on no worker, say), so its region is to be avoided."""

    @property
    def finished(self) -> bool:
        """Whether nothing can change any more."""
        return self not in (TrialState.RUNNING, TrialState.PAUSED)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation of a trial."""

    epochs: float
    """Passes over the training data so far."""
    metrics: Mapping[str, float]
    """By full name (`eval/accuracy`); may be NaN or infinite when a trial diverges."""
    checkpoint: str | None = None
    """Path or URI; None when none was saved, or when it has been deleted."""
    seconds: float = 0.0
    """The trial's training time so far, over all its sittings."""
    gpu_seconds: float = 0.0
    """GPUs held meanwhile, times seconds."""

    def to_json(self) -> dict[str, Any]:
        """For the ledger. JSON has no NaN and no infinity: those go in as text."""
        metrics = {key: float(value) for key, value in self.metrics.items()}
        strict = {key: value if math.isfinite(value) else str(value) for key, value in metrics.items()}
        return {
            "epochs": float(self.epochs),
            "metrics": strict,
            "checkpoint": self.checkpoint,
            "seconds": float(self.seconds),
            "gpu_seconds": float(self.gpu_seconds),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Result:
        """What `to_json` made."""
        metrics = {key: float(value) for key, value in stored["metrics"].items()}
        return cls(
            epochs=stored["epochs"],
            metrics=metrics,
            checkpoint=stored["checkpoint"],
            seconds=stored["seconds"],
            gpu_seconds=stored.get("gpu_seconds", 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """One phase of a trial's unfreezing schedule."""

    name: str
    start_epoch: float
    thawed: str
    """For humans: `head`, `head + blocks 4-5`, `all`."""


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """A decision on a trial other than to go on, as it was taken."""

    decision: RulingKind
    """`stop`: ends as pruned; `pause`: waits for its promotion; `hold`: waits for the sweep to go on;
    `promote`: goes on."""
    epochs: float
    """Where the trial stood: the rung, where a scheduler decided."""
    reason: str
    """Who decided and why: the scheduler's name, `stop-trial`, a spent budget."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """Everything the ledger knows of one trial."""

    number: int
    state: TrialState
    params: Mapping[str, Any]
    """The drawn parameters, by dotted path; inactive ones are absent."""
    seed: int
    """Every random draw of the trial derives from it; 0 <= seed < 2**31."""
    results: tuple[Result, ...] = ()
    """By epochs, ascending; one for each evaluation."""
    phases: tuple[PhaseRecord, ...] = ()
    rulings: tuple[Ruling, ...] = ()
    """Decisions on it, in the order in which they were taken."""
    note: str | None = None
    """Where it comes from, when it was not drawn: `enqueued`, `clone of trial 3`."""
    error: str | None = None
    """One line, when the trial failed or could not run."""
    same_as: int | None = None
    """The trial whose results these are, as this one would have repeated it."""

    @property
    def ending(self) -> bool:
        """Whether it was decided that it ends early: then no driver lets it run on."""
        return any(ruling.decision == "stop" for ruling in self.rulings)

    @property
    def held(self) -> bool:
        """Whether it is paused for the sweep's sake and goes on first of all, no scheduler asked."""
        decisions = [ruling.decision for ruling in self.rulings]
        return self.state is TrialState.PAUSED and decisions[-1:] == ["hold"]

    @cached_property
    def saved(self) -> tuple[Result, ...]:
        """The evaluations whose checkpoints are there."""
        return tuple(r for r in self.results if r.checkpoint is not None)

    @property
    def last(self) -> Result | None:
        """The latest evaluation."""
        return self.results[-1] if self.results else None

    @property
    def epochs(self) -> float:
        """Passes over the training data up to the latest evaluation."""
        return self.results[-1].epochs if self.results else 0.0

    @property
    def seconds(self) -> float:
        """Training time up to the latest evaluation."""
        return self.results[-1].seconds if self.results else 0.0

    @property
    def gpu_seconds(self) -> float:
        """GPUs held, times seconds, up to the latest evaluation."""
        return self.results[-1].gpu_seconds if self.results else 0.0

    @property
    def checkpoint(self) -> str | None:
        """The latest checkpoint that still exists: where an unfinished trial goes on."""
        return self.saved[-1].checkpoint if self.saved else None

    def best_result(self, metric: str, goal: Goal) -> Result | None:
        """The evaluation with the best finite value of `metric`; of equals the earliest."""
        candidates = [r for r in self.results if math.isfinite(r.metrics.get(metric, math.nan))]
        return max(candidates, key=lambda r: score(r.metrics[metric], goal), default=None)

    def value(self, metric: str, goal: Goal) -> float | None:
        """The best finite value of `metric` over all evaluations; None when there is none."""
        best = self.best_result(metric, goal)
        return None if best is None else best.metrics[metric]


def score(value: float | None, goal: Goal) -> float:
    """`value` on a scale where more is better; what is missing or not a number is the worst.

    An infinite value is never good news from a diverging trial, so it is the worst as well.
    """
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if goal == "maximize" else -value


def ranked(trials: Iterable[TrialRecord], metric: str, goal: Goal) -> list[TrialRecord]:
    """`trials`, best value first; those without a value last; equals by number."""
    return sorted(trials, key=lambda t: (-score(t.value(metric, goal), goal), t.number))


def best_of(trials: Iterable[TrialRecord], metric: str, goal: Goal) -> TrialRecord | None:
    """The trial with the best value, of equals the first; None while there is no value."""
    first = next(iter(ranked(trials, metric, goal)), None)
    return None if first is None or first.value(metric, goal) is None else first
