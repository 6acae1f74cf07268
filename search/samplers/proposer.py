"""Samplers of Thaw's own: a pure function from what is known to the next point, under Optuna's interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from search.samplers.cube import Cube, Suggest
from search.samplers.history import History, read


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


class Proposer(BaseSampler):
    """Draws what `propose` says, all active parameters together."""

    def __init__(self, propose: Propose, suggest: Suggest, seed: int) -> None:
        self._propose = propose
        self._suggest = suggest
        self._seed = seed
        self._chosen: dict[str, Any] = {}
        self._chance = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The active parameters of the proposal."""
        cube = Cube(self._suggest)
        request = Request(
            cube=cube,
            history=read(study, cube, trial.number),
            number=trial.number,
            sweep_seed=int(study.user_attrs.get("seed", 0)),
            rng=np.random.default_rng(self._seed),
        )
        self._chosen = cube.params(self._propose(request)) if cube.size else {}
        return {name: cube.distributions[name] for name in self._chosen}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal."""
        return {name: self._chosen[name] for name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """For what no probe of the space has come across, and beside parameters set by hand."""
        return self._chance.sample_independent(study, trial, param_name, param_distribution)
