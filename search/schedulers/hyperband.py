"""Hyperband (Li et al. 2018, arXiv:1603.06560), asynchronous: brackets that halve later and later."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from search.records import TrialRecord
from search.schedulers.base import Decision, Scheduler
from search.schedulers.rungs import Ladder


class Hyperband:
    """Successive halving in brackets; bracket s has its lowest rung at `lowest * eta**s`.

    A trial belongs to a bracket by chance, drawn from its own seed, and is compared within it
    alone. Of S brackets, number s gets a share in proportion to eta**(S - 1 - s) / (S - s) trials,
    as in the paper, so that each is worth about the same training. The last one is a
    bracket without rungs: its trials run to their end.
    """

    def __init__(self, ladder: Ladder, halving: Callable[[Ladder], Scheduler]) -> None:
        """`halving` makes what decides within a bracket."""
        count = len(ladder.levels(ladder.epochs)) + 1
        steps = range(count)
        self._brackets = [
            halving(replace(ladder, lowest=ladder.lowest * ladder.factor**step)) for step in steps
        ]
        self._shares = [ladder.factor ** (count - 1 - step) / (count - step) for step in steps]

    def bracket(self, trial: TrialRecord) -> int:
        """Which bracket the trial is in."""
        draw = _draw(trial.number, trial.seed) * math.fsum(self._shares)
        for bracket, share in enumerate(self._shares[:-1]):
            draw -= share
            if draw < 0:
                return bracket
        return len(self._shares) - 1

    def decide(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> Decision:
        """What the trial's bracket says."""
        own = self.bracket(trial)
        peers = [t for t in trials if self.bracket(t) == own]
        return self._brackets[own].decide(trial, peers)

    def next(self, trials: Sequence[TrialRecord], *, more: bool) -> int | None:
        """The first that a bracket has to promote, the one with the highest rungs asked first."""
        brackets = [self.bracket(t) for t in trials]
        for own in reversed(range(len(self._brackets))):
            peers = [t for t, bracket in zip(trials, brackets, strict=True) if bracket == own]
            promoted = self._brackets[own].next(peers, more=more)
            if promoted is not None:
                return promoted
        return None


@lru_cache(maxsize=4096)
def _draw(number: int, seed: int) -> float:
    return random.Random(f"bracket of {number}, {seed}").random()
