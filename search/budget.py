"""What a sweep may use, what it has used, and when that is enough. Pure functions, and the meter they read.

What was used is computed from the ledger alone, so that it survives every resume: GPU time from the trials'
results, wall-clock and nodes from the *sittings*, one for each driver that worked on the sweep.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from search.config import BudgetConfig
from search.records import Goal, TrialRecord, TrialState, score
from search.results.text import duration, number

if TYPE_CHECKING:
    import optuna

DEFAULT_PRICE = "default"
# Optuna's regret bound has nothing to go by before (`Terminator`'s own minimum as well).
_MIN_COMPLETE = 20


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """One driver's work on a sweep, as far as the ledger knows."""

    seconds: float = 0.0
    """Wall-clock."""
    node_seconds: Mapping[str, float] = field(default_factory=dict)
    """Time of all nodes of the cluster together, by node type."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a sweep has used."""

    hours: float = 0.0
    gpu_hours: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Spent:
    """A budget that is used up."""

    budget: str
    """Its path in the sweep file."""
    why: str
    then: Literal["halt", "drain"]
    """`halt`: running trials end at their next evaluation; `drain`: they finish."""

    @property
    def reason(self) -> str:
        """One line."""
        return f"{self.budget}: {self.why}"


def usage(trials: Iterable[TrialRecord], sittings: Iterable[Sitting], prices: Mapping[str, float]) -> Usage:
    """What a sweep has used.

    Args:
        prices: of an hour of each node type; `default` is that of the others.
    """
    seconds = cost = 0.0
    for sitting in sittings:
        seconds += sitting.seconds
        cost += sum(price_of(kind, prices) * s / 3600 for kind, s in sitting.node_seconds.items())
    gpu_seconds = sum(trial.gpu_seconds for trial in trials)
    return Usage(hours=seconds / 3600, gpu_hours=gpu_seconds / 3600, cost=cost)


def price_of(kind: str, prices: Mapping[str, float]) -> float:
    """The price of an hour of a node of this type."""
    return prices.get(kind, prices.get(DEFAULT_PRICE, 0.0))


def spent(
    budget: BudgetConfig, used: Usage, trials: Sequence[TrialRecord], metric: str, goal: Goal
) -> Spent | None:
    """The first budget that is used up; None where all last. `min_improvement` is not among them."""
    for name in ("hours", "gpu_hours", "cost"):
        limit, taken = getattr(budget, name), getattr(used, name)
        if limit is not None and taken >= limit:
            why = f"{number(taken)} of {number(float(limit))} used"
            return Spent(budget=f"search.budget.{name}", why=why, then="halt")
    if budget.patience is not None and (since := stagnation(trials, metric, goal)) >= budget.patience:
        why = f"no better trial among the last {since}"
        return Spent(budget="search.budget.patience", why=why, then="drain")
    return None


def stagnation(trials: Iterable[TrialRecord], metric: str, goal: Goal) -> int:
    """Ended trials since the one with the best value; failed ones do not count."""
    since, best = 0, score(None, goal)
    for trial in sorted(trials, key=lambda t: t.number):
        if (
            trial.state in (TrialState.FAILED, TrialState.RUNNING, TrialState.PAUSED)
            or trial.same_as is not None
        ):
            continue
        value = score(trial.value(metric, goal), goal)
        since, best = (0, value) if value > best else (since + 1, best)
    return since


def regret_bound(trials: Sequence[optuna.trial.FrozenTrial], goal: Goal, seed: int) -> float | None:
    """How much better than the best complete trial another may be, at most, with high probability.

    A Gaussian process's bound, Optuna's `RegretBoundEvaluator` (Makarova et al. 2022, Automatic
    Termination for Hyperparameter Optimization). None while fewer than 20 trials are complete, or where no
    parameter is common to all.
    """
    import optuna
    from optuna.terminator import RegretBoundEvaluator

    complete = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
    if len(complete) < _MIN_COMPLETE or not optuna.search_space.intersection_search_space(complete):
        return None
    direction = optuna.study.StudyDirection[goal.upper()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(RegretBoundEvaluator(seed=seed).evaluate(complete, direction))


class Meter:
    """Measures the sitting of this driver.

    Args:
        nodes: node type -> how many nodes of it the cluster has just now.
        clock: monotonic seconds.
    """

    def __init__(
        self, nodes: Callable[[], Mapping[str, int]] = dict, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._nodes = nodes
        self._clock = clock
        self._began = self._read_at = clock()
        self._node_seconds: dict[str, float] = {}

    def read(self) -> Sitting:
        """The sitting so far. Nodes count as what they are now since the last reading."""
        now = self._clock()
        for kind, count in self._nodes().items():
            self._node_seconds[kind] = self._node_seconds.get(kind, 0.0) + count * (now - self._read_at)
        self._read_at = now
        return Sitting(seconds=now - self._began, node_seconds=dict(self._node_seconds))


def describe(used: Usage, budget: BudgetConfig) -> list[str]:
    """What was used of what may be, in words, one line each; what is neither limited nor used is left out."""
    lines = []
    if budget.hours is not None or used.hours:
        of = f" of {duration(budget.hours * 3600)}" if budget.hours is not None else ""
        lines.append(f"wall-clock {duration(used.hours * 3600)}{of}")
    for name, unit in (("gpu_hours", "GPU-hours"), ("cost", "cost")):
        limit, value = getattr(budget, name), getattr(used, name)
        if limit is not None or value:
            lines.append(f"{unit} {value:.2f}" + (f" of {limit:g}" if limit is not None else ""))
    return lines
