"""Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): stopping, or pausing and promoting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from search.records import TrialRecord, TrialState
from search.schedulers.base import Decision
from search.schedulers.rungs import Ladder


class StoppingAsha:
    """Stops a trial at a rung unless it is among the best 1/eta of those that have reached it so far.

    The law: of n trials that have reached the rung, itself included, a trial goes on when it is at
    least as good as the m-th best, m = 1 + floor((n - 1) / eta). That is the (1 - 1/eta) quantile as
    cut-off, as in the paper's and Ray's stopping rule; the first to arrive goes on, and
    with at most eta arrivals only the best so far does. Ties go on; a value that is not finite is the worst.
    """

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder

    def decide(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> Decision:
        """STOP when the latest evaluation reaches a rung and misses its cut-off, else CONTINUE."""
        if trial.last is None or self.ladder.at_end(trial):
            return Decision.CONTINUE  # nothing to judge yet, or nothing left to save
        own = self.ladder.scores(trial)
        for rung in self.ladder.just_reached(trial):
            others = (self.ladder.scores(t) for t in trials if t.number != trial.number)
            arrived = sorted([own[rung], *(s[rung] for s in others if len(s) > rung)], reverse=True)
            survivors = 1 + math.floor((len(arrived) - 1) / self.ladder.factor)
            if own[rung] < arrived[survivors - 1]:
                return Decision.STOP
        return Decision.CONTINUE

    def next(self, trials: Sequence[TrialRecord], *, more: bool) -> int | None:
        """None: no trial is ever paused."""
        return None


class PromotingAsha:
    """Pauses each trial at each rung; promotes the best 1/eta of a rung as soon as there are enough.

    The law: of n trials that have reached a rung, the best floor(n / eta) are promoted (of equals the
    first drawn); those that are still paused there go on, from the highest rung first and the
    best of it first. A trial that would be promoted at once is not paused at all. A value that
    is not finite is never promoted. When no new trial is to come, the best of each rung goes
    on however few there are, once nobody who runs can still reach that rung.
    """

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder

    def decide(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> Decision:
        """PAUSE when the latest evaluation reaches a rung and earns no promotion now, else CONTINUE."""
        if trial.last is None or self.ladder.at_end(trial) or not self.ladder.just_reached(trial):
            return Decision.CONTINUE
        paused = replace(trial, state=TrialState.PAUSED)
        others = [t for t in trials if t.number != trial.number]
        promoted = self.next([*others, paused], more=True)
        return Decision.CONTINUE if promoted == trial.number else Decision.PAUSE

    def ceiling(self, trials: Sequence[TrialRecord]) -> int | None:
        """The rung from which, and from those above it, nobody is promoted while new trials come."""
        return None

    def next(self, trials: Sequence[TrialRecord], *, more: bool) -> int | None:
        """The best paused trial of the highest rung that has one to promote."""
        scores = {t.number: self.ladder.scores(t) for t in trials}
        top = max(map(len, scores.values()), default=0)
        arrived = [
            sorted((-s[rung], number) for number, s in scores.items() if len(s) > rung) for rung in range(top)
        ]
        # Which rung they wait at; -1 where they were paused below the lowest.
        waits = {t.number: len(scores[t.number]) - 1 for t in trials if t.state is TrialState.PAUSED}

        def best(rung: int, places: int) -> int | None:
            here = (n for lost, n in arrived[rung][:places] if waits.get(n) == rung and math.isfinite(lost))
            return next(here, None)

        ceiling = self.ceiling(trials)
        for rung in reversed(range(top if ceiling is None else min(top, ceiling))):
            found = best(rung, math.floor(len(arrived[rung]) / self.ladder.factor))
            if found is not None:
                return found
        if more:
            return None
        running = [len(scores[t.number]) for t in trials if t.state is TrialState.RUNNING]
        for rung in reversed(range(top)):
            if all(reached > rung for reached in running) and (found := best(rung, 1)) is not None:
                return found
        return None
