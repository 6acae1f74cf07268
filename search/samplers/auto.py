"""Thaw's default: a Gaussian process on how far trials came and how well they did, and some chance."""

from __future__ import annotations

import numpy as np
import optuna

from search.config import SamplerConfig
from search.samplers.cube import Suggest
from search.samplers.gp import by_chance, propose
from search.samplers.proposer import Proposer, Request

_CHANCE = 0.2


def auto(config: SamplerConfig, seed: int, suggest: Suggest) -> optuna.samplers.BaseSampler:
    """The candidate with the highest expected improvement; one trial in five by chance."""
    return Proposer(lambda request: _propose(request, config), suggest, seed)


def _propose(request: Request, config: SamplerConfig) -> np.ndarray:
    if request.rng.random() < _CHANCE:
        return by_chance(request)
    return propose(request, config)
