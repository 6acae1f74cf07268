"""PASHA (Bohdal et al. 2023, arXiv:2207.06940): trains no farther than it takes to know the ranking."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from search.records import TrialRecord, score
from search.schedulers.asha import PromotingAsha
from search.schedulers.rungs import Ladder

_NOISE_QUANTILE = 0.9


class Pasha(PromotingAsha):
    """Promoting ASHA under a ceiling, at first the second rung.

    The ceiling rises by a rung when those that have reached it stand in another order there than a
    rung below. Places are compared softly: trials may swap that differ by no more than the
    noise, which is the 90 % quantile of the differences between trials whose curves
    cross more than once.
    """

    def ceiling(self, trials: Sequence[TrialRecord]) -> int:
        """The highest rung from which nobody is promoted."""
        scores = [(t, self.ladder.scores(t)) for t in trials]
        top = max((len(s) for _, s in scores), default=0) - 1
        if top < 1:
            return 1
        there = [(t, s) for t, s in scores if len(s) == top + 1]
        noise = _noise([t for t, _ in there], self.ladder)
        swapped = any(
            (a[top] - b[top]) * (a[top - 1] - b[top - 1]) < 0 and abs(a[top] - b[top]) > noise
            for (_, a), (_, b) in combinations(there, 2)
        )
        return top + 1 if swapped else top


def _noise(trials: Sequence[TrialRecord], ladder: Ladder) -> float:
    curves = [[score(r.metrics.get(ladder.metric), ladder.goal) for r in t.results] for t in trials]
    differences: list[float] = []
    for one, other in combinations(curves, 2):
        common = min(len(one), len(other))
        gaps = np.array(one[:common]) - np.array(other[:common])
        if not np.isfinite(gaps).all():
            continue
        signs = np.sign(gaps[gaps != 0])
        if (signs[1:] != signs[:-1]).sum() > 1:
            differences.append(abs(float(gaps[-1])))
    return float(np.quantile(differences, _NOISE_QUANTILE)) if differences else 0.0
