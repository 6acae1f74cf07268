"""The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.2)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from search.records import TrialRecord, score
from search.schedulers.base import Decision
from search.schedulers.rungs import EPSILON, Ladder

_LEAST_TRIALS = 4


class Median:
    """Stops a trial whose best value so far is below the median of the others' averages up to here.

    From the ladder's lowest rung on, and as soon as four others have come as far. Values that are
    not finite are left out of the averages.
    """

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder

    def decide(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> Decision:
        """STOP or CONTINUE."""
        ladder = self.ladder
        if trial.last is None or ladder.at_end(trial):
            return Decision.CONTINUE
        if ladder.cost(trial, trial.epochs) < ladder.lowest - EPSILON:
            return Decision.CONTINUE
        averages = [
            self._average(t, trial.epochs)
            for t in trials
            if t.number != trial.number and t.epochs >= trial.epochs - EPSILON
        ]
        if len(averages) < _LEAST_TRIALS:
            return Decision.CONTINUE
        own = max(score(r.metrics.get(ladder.metric), ladder.goal) for r in trial.results)
        return Decision.STOP if own < statistics.median(averages) else Decision.CONTINUE

    def next(self, trials: Sequence[TrialRecord], *, more: bool) -> int | None:
        """None: no trial is ever paused."""
        return None

    def _average(self, trial: TrialRecord, epochs: float) -> float:
        upto = [r for r in trial.results if r.epochs <= epochs + EPSILON]
        scores = [score(r.metrics.get(self.ladder.metric), self.ladder.goal) for r in upto]
        finite = [s for s in scores if s != float("-inf")]
        return statistics.fmean(finite) if finite else float("-inf")
