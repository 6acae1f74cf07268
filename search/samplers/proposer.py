"""Samplers of Thaw's own: a pure function from what is known to the next point, under Optuna's interface."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from search.samplers.cube import Cube, Suggest
from search.samplers.history import History, Reader


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a proposal may depend on."""

    cube: Cube
    history: History
    number: int
    """Of the trial that is drawn."""
    sweep_seed: int
    rng: np.random.Generator
    """Seeded for this trial."""


Propose = Callable[[Request], np.ndarray]
"""The next point [d] of the cube."""


class Whole(BaseSampler):
    """Draws all active parameters of a trial together."""

    _chosen: Mapping[str, Any]

    @abstractmethod
    def choose(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> tuple[Mapping[str, Any], Mapping[str, BaseDistribution]]:
        """The trial's parameters, as Optuna stores them, and the distributions of these at least."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The active parameters."""
        self._chosen, distributions = self.choose(study, trial)
        return {name: distributions[name] for name in self._chosen}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What was chosen."""
        return {name: self._chosen[name] for name in search_space}


class Proposer(Whole):
    """Draws what `propose` says."""

    def __init__(self, propose: Propose, suggest: Suggest, seed: int) -> None:
        self._propose = propose
        self._suggest = suggest
        self._seed = seed
        self._chance = RandomSampler(seed=seed)

    def choose(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> tuple[Mapping[str, Any], Mapping[str, BaseDistribution]]:
        """The proposal."""
        cube, reader = _known(self._suggest)
        request = Request(
            cube=cube,
            history=reader.read(study, trial.number),
            number=trial.number,
            sweep_seed=int(study.user_attrs.get("seed", 0)),
            rng=np.random.default_rng(self._seed),
        )
        return cube.params(self._propose(request)) if cube.size else {}, cube.distributions

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """For what no probe of the space has come across, and beside parameters set by hand."""
        return self._chance.sample_independent(study, trial, param_name, param_distribution)


@lru_cache(maxsize=4)
def _known(suggest: Suggest) -> tuple[Cube, Reader]:
    """What follows from the space and the trials alone: a sampler, made for each trial, finds it there."""
    cube = Cube(suggest)
    return cube, Reader(cube)
