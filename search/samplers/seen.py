"""A study as Optuna's own samplers are to see it: paused trials are not running, rungs count as results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search.records import TrialState
from search.samplers.history import kind

Retell = Callable[[list[FrozenTrial]], list[FrozenTrial]]
"""The trials of a study as a sampler is to see them; those that it is given stay as they are."""


def unpaused(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Paused trials as pruned ones: they keep nobody away, and their evaluations count.

    One that failed with a diverged loss or did not fit has no value, and ranks last.
    """
    return [retold(t, OptunaState.PRUNED) if _paused(t) else t for t in trials]


def retold(trial: FrozenTrial, state: OptunaState, value: float | None = None) -> FrozenTrial:
    """A copy of a trial in another state."""
    other = copy.copy(trial)
    other.state = state
    other.values = None if value is None else [value]
    return other


def _without_curve(trial: FrozenTrial) -> FrozenTrial:
    other = copy.copy(trial)
    other.intermediate_values = {}
    return other


def _paused(trial: FrozenTrial) -> bool:
    return trial.state is OptunaState.RUNNING and kind(trial) is TrialState.PAUSED


class _Study(optuna.Study):
    """A study whose trials are told anew."""

    def __init__(self, study: optuna.Study, retell: Retell) -> None:
        self.__dict__.update(study.__dict__)
        self._retell = retell

    # What `Study.get_trials` and Optuna's samplers read trials by.
    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[OptunaState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = self._retell(super()._get_trials(deepcopy=deepcopy, use_cache=use_cache))
        if len(self.directions) > 1:  # Optuna's ranks curves by the one direction that there is
            trials = [_without_curve(t) if t.state is OptunaState.PRUNED else t for t in trials]
        return [t for t in trials if states is None or t.state in states]


class Seeing(BaseSampler):
    """An Optuna sampler that sees the trials as `retell` tells them."""

    def __init__(self, sampler: BaseSampler, retell: Retell) -> None:
        self._sampler = sampler
        self._retell = retell

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As the sampler within."""
        return self._sampler.infer_relative_search_space(_Study(study, self._retell), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler within."""
        return self._sampler.sample_relative(_Study(study, self._retell), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler within."""
        told = _Study(study, self._retell)
        return self._sampler.sample_independent(told, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: OptunaState,
        values: Sequence[float] | None,
    ) -> None:
        """As the sampler within."""
        self._sampler.after_trial(study, trial, state, values)
