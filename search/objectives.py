"""Several objectives: what trials are compared by besides the metric, and which of them nobody beats.

A trial stands by its evaluation with the best metric, since that is the checkpoint that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from search.records import Goal, TrialRecord, TrialState, score

COSTS = {
    "cost/latency": "milliseconds for one example through the whole model",
    "cost/parameters": "parameters that its schedule thaws, which is what it differs in from the model",
    "cost/seconds": "seconds of training",
}
"""What a trial costs, as an objective."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One thing that trials are compared by."""

    name: str
    goal: Goal


def values_of(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """The trial's value of each objective at its best evaluation by the first; None where one is missing."""
    first = objectives[0]
    best = trial.best_result(first.name, first.goal)
    if best is None:
        return None
    values = tuple(best.metrics.get(objective.name, math.nan) for objective in objectives)
    return values if all(map(math.isfinite, values)) else None


def pareto(trials: Iterable[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """The complete trials that no other is at least as good as in all objectives and better in one.

    The best by the first objective first; of trials with the same values all are kept.
    """
    scored = []
    for trial in trials:
        values = values_of(trial, objectives) if trial.state is TrialState.COMPLETE else None
        if values is not None and trial.same_as is None:
            scored.append((tuple(score(v, o.goal) for v, o in zip(values, objectives, strict=True)), trial))
    scored.sort(key=lambda item: (*(-value for value in item[0]), item[1].number))
    front: list[tuple[tuple[float, ...], TrialRecord]] = []
    for own, trial in scored:  # what beats it comes before it, and is on the front or beaten from there
        if not any(other != own and all(map(float.__ge__, other, own)) for other, _ in front):
            front.append((own, trial))
    return [trial for _, trial in front]
