"""Learning rates and parameter groups: pure functions, no optimizer in sight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.blocks import Blocks
from training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tensors that share learning rate, weight decay and number of Adam steps.

    ZeRO flattens a group into one tensor with one step count, so tensors that thawed at
    different times must lie in different groups to keep their own bias correction.
    """

    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float
    age: int


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Adam's state of one tensor: first and second moment (fp32, of its shape), steps taken."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: int


def lr_factor(step: int, *, total_steps: int, warmup_ratio: float, schedule: str) -> float:
    """Factor on the peak learning rate at optimizer step `step`, counted from 0.

    Rises linearly over the warm-up, whose first step is not lost at zero, then falls over
    the rest of the trial: linearly, as half a cosine (Loshchilov & Hutter 2017), or not at
    all. Above zero at every step before `total_steps`.
    """
    warmup = math.ceil(warmup_ratio * total_steps - 1e-9)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    assert schedule == "constant", schedule
    return 1.0


def groups(
    names: Iterable[str],
    *,
    blocks: Blocks,
    shapes: Mapping[str, torch.Size],
    ages: Mapping[str, int],
    training: TrainingConfig,
) -> list[Group]:
    """Parameter groups of the thawed tensors `names`.

    The learning rate falls by `layerwise_lr_decay` from each block to the one below it
    (Howard & Ruder 2018); biases and norms, the tensors of one dimension, do not decay.
    """
    members: dict[tuple[float, float, int], list[str]] = {}
    for name in names:
        rate = training.learning_rate * training.layerwise_lr_decay ** blocks.height(blocks.unit(name))
        decay = training.weight_decay if len(shapes[name]) > 1 else 0.0
        members.setdefault((rate, decay, ages.get(name, 0)), []).append(name)
    return [
        Group(names=tuple(tensors), learning_rate=rate, weight_decay=decay, age=age)
        for (rate, decay, age), tensors in members.items()
    ]
