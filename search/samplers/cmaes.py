"""CMA-ES (Hansen 2016, arXiv:1604.00772). Its state is told anew from the trials, never stored."""

from __future__ import annotations

import warnings

import numpy as np
import optuna

from search.config import SamplerConfig
from search.samplers.cube import Suggest
from search.samplers.feasibility import likely
from search.samplers.history import worth
from search.samplers.proposer import Proposer, Request

_SIGMA = 0.25
_CANDIDATES = 16


def cmaes(config: SamplerConfig, seed: int, suggest: Suggest) -> optuna.samplers.BaseSampler:
    """The strategy over all axes. A generation is the next trials, by number, of those that have a result.

    An axis that is inactive in a trial stands at the strategy's mean there, so the trial says
    nothing of it.
    """
    return Proposer(_propose, suggest, seed)


def _propose(request: Request) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optional parts that it lacks
        from cmaes import CMA

    history, size = request.history, max(request.cube.size, 2)  # it has no theory for one axis
    strategy = CMA(
        mean=np.full(size, 0.5),
        sigma=_SIGMA,
        bounds=np.tile([0.0, 1.0], (size, 1)),
        seed=int(request.rng.integers(2**31)),
    )
    ended = np.flatnonzero(~history.running & (history.bad | ~np.isnan(history.best)))
    losses = -worth(history)
    for start in range(0, len(ended) - strategy.population_size + 1, strategy.population_size):
        generation = ended[start : start + strategy.population_size]
        points = np.tile(strategy.mean, (len(generation), 1))
        own = history.points[generation]
        points[:, : own.shape[1]] = np.where(np.isnan(own), points[:, : own.shape[1]], own)
        strategy.tell([(point, float(losses[i])) for point, i in zip(points, generation, strict=True)])
    drawn = np.stack([strategy.ask() for _ in range(_CANDIDATES)])[:, : request.cube.size]
    return likely(request, drawn)
