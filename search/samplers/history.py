"""What a sampler learns from: the trials of a study as arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search.records import TrialState
from search.samplers.cube import Cube

_BAD = frozenset({TrialState.INFEASIBLE, TrialState.DIVERGED})


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """Trials but the one that is drawn, oldest first; those that failed teach nothing and are left out."""

    points: np.ndarray
    """[n, d], NaN where inactive."""
    curves: tuple[tuple[tuple[int, float], ...], ...]
    """Of each trial (step, score), ascending, finite, more is better. Of one that is complete and
    has no evaluations, its value at step 1."""
    values: np.ndarray
    """[n, objectives], more is better; NaN for trials that are not complete."""
    bad: np.ndarray
    """[n] bool: infeasible or diverged."""
    running: np.ndarray
    """[n] bool: running, not paused."""

    def __len__(self) -> int:
        return len(self.points)

    def best(self) -> np.ndarray:
        """[n]: the best score of each trial, of its evaluations or its value; NaN without."""
        found = [max((score for _, score in curve), default=np.nan) for curve in self.curves]
        return np.array(found, dtype=np.float64)


def kind(trial: FrozenTrial) -> TrialState | None:
    """The trial's state in the ledger's terms; None where only Optuna's is known."""
    stored = trial.user_attrs.get("state")
    return TrialState(stored) if stored is not None else None


def read(study: optuna.Study, cube: Cube, but: int) -> History:
    """The history of `study` without trial number `but`, which is being drawn."""
    from optuna.study import StudyDirection

    signs = [1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in study.directions]
    sign, none = signs[0], [math.nan] * len(signs)
    points: list[np.ndarray] = []
    curves: list[tuple[tuple[int, float], ...]] = []
    values: list[list[float]] = []
    bad: list[bool] = []
    running: list[bool] = []
    for trial in study.get_trials(deepcopy=False):
        state = kind(trial)
        if trial.number == but or trial.state in (OptunaState.WAITING, OptunaState.FAIL):
            continue
        curve = tuple(sorted((step, sign * value) for step, value in trial.intermediate_values.items()))
        told = trial.values if trial.state is OptunaState.COMPLETE else None
        if told and not curve:
            curve = ((1, sign * told[0]),)
        points.append(cube.point(trial.params))
        curves.append(curve)
        values.append([own * value for own, value in zip(signs, told, strict=True)] if told else none)
        pruned_at_once = state is None and trial.state is OptunaState.PRUNED and not curve
        bad.append(state in _BAD or pruned_at_once)
        running.append(trial.state is OptunaState.RUNNING and state is not TrialState.PAUSED)
    return History(
        points=np.array(points, dtype=np.float64).reshape(len(points), cube.size),
        curves=tuple(curves),
        values=np.array(values, dtype=np.float64).reshape(len(values), len(signs)),
        bad=np.array(bad, dtype=bool),
        running=np.array(running, dtype=bool),
    )


def worth(history: History) -> np.ndarray:
    """[n] places from 0: who got farther is better, of those who got as far the better value is.

    Farther by half counts, so that a rung more does and an evaluation more does not.
    """
    far = np.array([np.floor(np.log2(curve[-1][0])) if curve else -1.0 for curve in history.curves])
    best = np.nan_to_num(history.best(), nan=-np.inf)
    order = np.lexsort((best, far, ~history.bad))
    places = np.empty(len(history))
    places[order] = np.arange(len(history))
    return places
