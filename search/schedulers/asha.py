"""Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), the variant that stops trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.records import Goal, TrialRecord, score
from search.schedulers.base import Decision

# Epochs are sums of floats; a rung counts as reached this much before.
EPSILON = 1e-9


class Asha:
    """Stops a trial at a rung unless it is among the best 1/eta of those that have reached it so far.

    The resource is epochs seen. Rungs lie at `min_epochs * eta**k`, k = 0, 1, ..., below the trial's
    own full `epochs`. A trial reaches a rung at its first evaluation there or beyond, and
    is compared by its value at that evaluation, not by the best so far.

    The law: of n trials that have reached the rung, itself included, a trial goes on when it is at
    least as good as the m-th best, m = 1 + floor((n - 1) / eta). That is the (1 - 1/eta) quantile as
    cut-off, as in the paper's and Ray's stopping rule; the first to arrive goes on, and
    with at most eta arrivals only the best so far does. Ties go on; a value that is not finite is the worst.
    """

    def __init__(
        self,
        *,
        metric: str,
        goal: Goal,
        epochs: float,
        evaluations_per_epoch: int = 1,
        reduction_factor: float = 3,
        min_epochs: float | None = None,
    ) -> None:
        """`epochs`: full length of a trial that does not draw its own; `min_epochs`: the lowest
        rung, one interval between evaluations where unset.

        Raises:
            ValueError: reduction_factor <= 1 or min_epochs <= 0.
        """
        if not reduction_factor > 1:
            raise ValueError(f"reduction_factor must be > 1, got {reduction_factor}")
        if min_epochs is not None and not min_epochs > 0:
            raise ValueError(f"min_epochs must be > 0, got {min_epochs}")
        self.metric = metric
        self.goal = goal
        self.epochs = epochs
        self.reduction_factor = reduction_factor
        self.min_epochs = 1 / evaluations_per_epoch if min_epochs is None else min_epochs

    def levels(self, epochs: float) -> tuple[float, ...]:
        """The rungs of a trial of full length `epochs`, in epochs, ascending."""
        levels: list[float] = []
        level = self.min_epochs
        while level < epochs - EPSILON:
            levels.append(level)
            level = self.min_epochs * self.reduction_factor ** len(levels)
        return tuple(levels)

    def decide(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> Decision:
        """STOP when the latest evaluation reaches a rung and misses its cut-off, else CONTINUE."""
        full = float(trial.params.get("epochs", self.epochs))
        if trial.last is None or trial.epochs >= full - EPSILON:
            return Decision.CONTINUE  # nothing to judge yet, or nothing left to save
        before = trial.results[-2].epochs if len(trial.results) > 1 else 0.0
        for level in self.levels(full):
            if before < level - EPSILON <= trial.epochs and not self._passes(trial, level, trials):
                return Decision.STOP
        return Decision.CONTINUE

    def _passes(self, trial: TrialRecord, level: float, trials: Sequence[TrialRecord]) -> bool:
        own = _score_at(trial, level, self.metric, self.goal)
        assert own is not None
        others = (_score_at(t, level, self.metric, self.goal) for t in trials if t.number != trial.number)
        arrived = sorted([own, *(s for s in others if s is not None)], reverse=True)
        survivors = 1 + math.floor((len(arrived) - 1) / self.reduction_factor)
        return own >= arrived[survivors - 1]


def _score_at(trial: TrialRecord, level: float, metric: str, goal: Goal) -> float | None:
    """The trial's score at the rung, more is better; None when it has not reached it."""
    for result in trial.results:
        if result.epochs >= level - EPSILON:
            return score(result.metrics.get(metric), goal)
    return None
