"""Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate (Falkner et al. 2018)."""

from __future__ import annotations

import optuna

from search.config import SamplerConfig
from search.samplers.cube import Suggest
from search.samplers.seen import Retell, Seeing, unpaused

STARTUP_TRIALS = 10


def tpe(config: SamplerConfig, seed: int, suggest: Suggest) -> optuna.samplers.BaseSampler:
    """Optuna's.

    `group` fits conditional parameters apart, where they are active; `constant_liar` keeps trials
    that are running from being suggested again. Infeasible and diverged trials are told as pruned
    without a value, which ranks them below all others.
    """
    return parzen(config, seed, unpaused)


def parzen(config: SamplerConfig, seed: int, retell: Retell) -> optuna.samplers.BaseSampler:
    """Optuna's estimator over the trials as `retell` tells them."""
    startup = STARTUP_TRIALS if config.startup_trials is None else config.startup_trials
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
    )
    return Seeing(sampler, retell)
