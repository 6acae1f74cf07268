"""Independent draws."""

from __future__ import annotations

import optuna

from search.config import SamplerConfig
from search.samplers.cube import Suggest


def random(config: SamplerConfig, seed: int, suggest: Suggest) -> optuna.samplers.BaseSampler:
    """Draws without regard to results."""
    return optuna.samplers.RandomSampler(seed=seed)
