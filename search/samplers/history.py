"""What a sampler learns from: the trials of a study as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.study import StudyDirection
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
    farthest: np.ndarray
    """[n] int: step of each trial's latest evaluation, 0 before the first. Of a trial that is complete and
    has no evaluations 1."""
    best: np.ndarray
    """[n]: the best score of each trial, more is better, of its evaluations or its value; NaN without."""
    values: np.ndarray
    """[n, objectives], more is better; NaN for trials that are not complete."""
    bad: np.ndarray
    """[n] bool: infeasible or diverged."""
    running: np.ndarray
    """[n] bool: running, not paused."""

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Row:
    """What a history has of one trial."""

    point: np.ndarray
    farthest: int
    best: float
    values: Sequence[float]
    bad: bool
    running: bool


class Reader:
    """Reads the histories of one study in turn; of trials that have not changed in between, nothing again."""

    def __init__(self, cube: Cube) -> None:
        self._cube = cube
        self._rows: dict[int, tuple[FrozenTrial, _Row]] = {}

    def read(self, study: optuna.Study, but: int) -> History:
        """The history of `study` without trial number `but`, which is being drawn."""
        signs = [1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in study.directions]
        rows = [
            self._row(trial, signs)
            for trial in study.get_trials(deepcopy=False)
            if trial.number != but and trial.state not in (OptunaState.WAITING, OptunaState.FAIL)
        ]
        return History(
            points=np.concatenate([np.empty(0), *(row.point for row in rows)]).reshape(-1, self._cube.size),
            farthest=np.array([row.farthest for row in rows], dtype=np.int64),
            best=np.array([row.best for row in rows], dtype=np.float64),
            values=np.array([row.values for row in rows], dtype=np.float64).reshape(-1, len(signs)),
            bad=np.array([row.bad for row in rows], dtype=bool),
            running=np.array([row.running for row in rows], dtype=bool),
        )

    def _row(self, trial: FrozenTrial, signs: Sequence[float]) -> _Row:
        known = self._rows.get(trial.number)
        # Optuna makes a new object of a trial that changes.
        if known is not None and known[0] is trial:
            return known[1]
        row = _row(trial, self._cube, signs)
        self._rows[trial.number] = trial, row
        return row


def _row(trial: FrozenTrial, cube: Cube, signs: Sequence[float]) -> _Row:
    state = kind(trial)
    reached = {step: signs[0] * value for step, value in trial.intermediate_values.items()}
    told = trial.values if trial.state is OptunaState.COMPLETE else None
    if told and not reached:
        reached = {1: signs[0] * told[0]}
    pruned_at_once = state is None and trial.state is OptunaState.PRUNED and not reached
    return _Row(
        point=cube.point(trial.params),
        farthest=max(reached, default=0),
        best=max(reached.values(), default=math.nan),
        values=[own * value for own, value in zip(signs, told or [math.nan] * len(signs), strict=True)],
        bad=state in _BAD or pruned_at_once,
        running=trial.state is OptunaState.RUNNING and state is not TrialState.PAUSED,
    )


def kind(trial: FrozenTrial) -> TrialState | None:
    """The trial's state in the ledger's terms; None where only Optuna's is known."""
    stored = trial.user_attrs.get("state")
    return TrialState(stored) if stored is not None else None


def worth(history: History) -> np.ndarray:
    """[n] places from 0: who got farther is better, of those who got as far the better value is.

    Farther by half counts, so that a rung more does and an evaluation more does not.
    """
    doublings = np.frexp(history.farthest)[1]  # exact, where a logarithm is not
    best = np.nan_to_num(history.best, nan=-np.inf)
    order = np.lexsort((best, doublings, ~history.bad))
    places = np.empty(len(history))
    places[order] = np.arange(len(history))
    return places
