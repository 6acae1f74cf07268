"""Samplers by name: each is made from its settings and a seed. Adding one is a line in the table.

A sampler is made anew for every trial, from a seed that belongs to the trial's number, so that a
suggestion is a function of seed, number and ledger, whatever happened to the process before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from search.config import SamplerConfig

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 10


def tpe(config: SamplerConfig, seed: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate (Falkner et al. 2018).

    `group` fits conditional parameters apart, where they are active; `constant_liar` keeps trials
    that are running from being suggested again.
    """
    from optuna.samplers import TPESampler

    startup = STARTUP_TRIALS if config.startup_trials is None else config.startup_trials
    return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True)


def random(config: SamplerConfig, seed: int) -> optuna.samplers.BaseSampler:
    """Independent draws."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[SamplerConfig, int], optuna.samplers.BaseSampler]] = {
    "tpe": tpe,
    "random": random,
}


def make_sampler(config: SamplerConfig, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that `config` names. `seed` must be in [0, 2**32).

    Raises:
        ValueError: there is no such sampler.
    """
    if config.type not in SAMPLERS:
        raise ValueError(f"search.sampler.type: must be one of {', '.join(SAMPLERS)}, got {config.type!r}")
    return SAMPLERS[config.type](config, seed)
