"""Rungs: how much of a resource a trial has taken, and what it was worth there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from search.records import Goal, TrialRecord, score

# Resources are sums of floats; a rung counts as reached this much before.
EPSILON = 1e-9

Cost = Callable[[TrialRecord, float], float]
"""What a trial takes up to so many epochs, in epochs of full training."""


def epochs_seen(trial: TrialRecord, epochs: float) -> float:
    """The plain resource: every epoch costs the same."""
    return epochs


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Rungs at `lowest * factor**k`, k = 0, 1, ..., below what a trial takes in full.

    A trial reaches a rung at its first evaluation there or beyond, and is compared by its value
    at that evaluation, not by the best so far.

    Raises:
        ValueError: factor <= 1 or lowest <= 0.
    """

    metric: str
    goal: Goal
    epochs: float
    """Full length of a trial that does not draw its own."""
    lowest: float
    factor: float = 3
    cost: Cost = epochs_seen
    _known: dict[int, tuple[TrialRecord, tuple[float, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ValueError(f"reduction_factor must be > 1, got {self.factor:g}")
        if not self.lowest > 0:
            raise ValueError(f"min_epochs must be > 0, got {self.lowest:g}")

    def full(self, trial: TrialRecord) -> float:
        """Epochs of the trial's whole training."""
        return float(trial.params.get("epochs", self.epochs))

    def at_end(self, trial: TrialRecord) -> bool:
        """Whether the trial has nothing left to train."""
        return trial.epochs >= self.full(trial) - EPSILON

    def levels(self, whole: float) -> tuple[float, ...]:
        """The rungs of a trial that takes `whole` in full, ascending."""
        return _levels(self.lowest, self.factor, whole)

    def of(self, trial: TrialRecord) -> tuple[float, ...]:
        """The rungs of this trial."""
        return self.levels(self.cost(trial, self.full(trial)))

    def scores(self, trial: TrialRecord) -> tuple[float, ...]:
        """The trial's score at each rung that it has reached, from the lowest; more is better."""
        known = self._known.get(trial.number)
        if known is not None and known[0] is trial:  # records do not change: most are asked for again
            return known[1]
        found: list[float] = []
        levels = self.of(trial)
        for result in trial.results:
            taken = self.cost(trial, result.epochs)
            while len(found) < len(levels) and levels[len(found)] - EPSILON <= taken:
                found.append(score(result.metrics.get(self.metric), self.goal))
            if len(found) == len(levels):
                break
        self._known[trial.number] = (trial, tuple(found))
        return tuple(found)

    def just_reached(self, trial: TrialRecord) -> tuple[int, ...]:
        """Indices of the rungs that the trial's latest evaluation was the first to reach."""
        if trial.last is None:
            return ()
        before = self.cost(trial, trial.results[-2].epochs) if len(trial.results) > 1 else 0.0
        taken = self.cost(trial, trial.epochs)
        return tuple(i for i, level in enumerate(self.of(trial)) if before < level - EPSILON <= taken)


@lru_cache(maxsize=1024)
def _levels(lowest: float, factor: float, whole: float) -> tuple[float, ...]:
    levels: list[float] = []
    level = lowest
    while level < whole - EPSILON:
        levels.append(level)
        level = lowest * factor ** len(levels)
    return tuple(levels)
