"""Quasi-random draws: a scrambled Sobol sequence (Owen 1998), which fills the space evenly."""

from __future__ import annotations

import numpy as np
import optuna

from search.config import SamplerConfig
from search.samplers.cube import Suggest
from search.samplers.proposer import Proposer, Request


def qmc(config: SamplerConfig, seed: int, suggest: Suggest) -> optuna.samplers.BaseSampler:
    """The n-th trial is the n-th point of the sweep's sequence; each parameter has an axis of its own."""
    return Proposer(_propose, suggest, seed)


def _propose(request: Request) -> np.ndarray:
    from scipy.stats import qmc as sequences

    sobol = sequences.Sobol(d=request.cube.size, scramble=True, rng=np.random.default_rng(request.sweep_seed))
    if request.number:
        sobol.fast_forward(request.number)
    return np.asarray(sobol.random(1)[0])
