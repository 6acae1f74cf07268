"""Samplers by name: made from settings, a seed and the space. Adding one is a file and a line in the table.

A sampler is made anew for every trial, from a seed that belongs to the trial's number, so that a
suggestion is a function of seed, number and ledger, whatever happened to the process before. None
keeps anything of its own in the ledger that it would have to read back.
"""

from __future__ import annotations

from collections.abc import Callable

import optuna

from search.config import SamplerConfig
from search.samplers.auto import auto
from search.samplers.bohb import bohb
from search.samplers.cmaes import cmaes
from search.samplers.cube import Suggest
from search.samplers.gp import gp
from search.samplers.grid import SpaceExhausted, grid
from search.samplers.nsga2 import nsga2
from search.samplers.qmc import qmc
from search.samplers.random import random
from search.samplers.tpe import tpe

__all__ = ["SAMPLERS", "SpaceExhausted", "Suggest", "make_sampler"]

SAMPLERS: dict[str, Callable[[SamplerConfig, int, Suggest], optuna.samplers.BaseSampler]] = {
    "auto": auto,
    "tpe": tpe,
    "gp": gp,
    "cmaes": cmaes,
    "nsga2": nsga2,
    "bohb": bohb,
    "qmc": qmc,
    "random": random,
    "grid": grid,
}


def make_sampler(config: SamplerConfig, seed: int, suggest: Suggest) -> optuna.samplers.BaseSampler:
    """The sampler that `config` names, for the space that `suggest` draws from. `seed` in [0, 2**32).

    Raises:
        ValueError: there is no such sampler, or it cannot search this space.
    """
    if config.type not in SAMPLERS:
        raise ValueError(f"search.sampler.type: must be one of {', '.join(SAMPLERS)}, got {config.type!r}")
    return SAMPLERS[config.type](config, seed, suggest)
