"""Unfreezing schedules: pure functions from settings to phases.

A new schedule is one file and one line in `SCHEDULES` (and its name in
`training.config.UnfreezingConfig.schedule`).
"""

from collections.abc import Callable
from itertools import pairwise

from training.config import UnfreezingConfig
from training.schedules.bottom_up import bottom_up
from training.schedules.chain_thaw import chain_thaw
from training.schedules.explicit import explicit
from training.schedules.full import full
from training.schedules.gradual import gradual
from training.schedules.head import head
from training.schedules.lisa import lisa
from training.schedules.phase import Phase, describe
from training.schedules.top import top

__all__ = ["SCHEDULES", "Phase", "describe", "phases"]

SCHEDULES: dict[str, Callable[[UnfreezingConfig, int, float, int], tuple[Phase, ...]]] = {
    "head": head,
    "top": top,
    "gradual": gradual,
    "bottom-up": bottom_up,
    "chain-thaw": chain_thaw,
    "lisa": lisa,
    "full": full,
    "phases": explicit,
}


def phases(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float, seed: int = 0) -> tuple[Phase, ...]:
    """The phases of a trial of `epochs` epochs on a model of `num_blocks` blocks, in order.

    The first starts at epoch 0, each later one after the one before it and before `epochs`.
    Schedules that draw at random draw from `seed`, the trial's.
    Raises ValueError where the settings do not fit the model or the length of the training.
    """
    if unfreezing.schedule not in SCHEDULES:
        raise ValueError(
            f"unfreezing.schedule: {unfreezing.schedule!r} is unknown; use one of {', '.join(SCHEDULES)}"
        )
    planned = SCHEDULES[unfreezing.schedule](unfreezing, num_blocks, epochs, seed)
    starts = [phase.start_epoch for phase in planned]
    assert starts
    assert starts[0] == 0
    assert all(a < b for a, b in pairwise([*starts, epochs])), starts
    return planned
