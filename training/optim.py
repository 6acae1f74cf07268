"""Learning rates, parameter groups and optimizer state by name. Pure; the engine acts on them."""

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
    """Tensors that share learning rate, weight decay and number of optimizer steps.

    ZeRO flattens a group into one tensor with one step count, so tensors that thawed at
    different times must lie in different groups to keep their own bias correction.
    """

    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float
    age: int


@dataclass(frozen=True, kw_only=True)
class Slots:
    """An optimizer's state of one tensor."""

    tensors: Mapping[str, Tensor]
    """fp32, by torch's names: for Adam `exp_avg` and `exp_avg_sq`, of the tensor's shape."""
    steps: int
    """Steps taken since the tensor first thawed."""


def lr_factor(step: int, *, total_steps: int, phase_start: int, training: TrainingConfig) -> float:
    """Factor on the peak learning rate at optimizer step `step`, counted from 0.

    Rises linearly over the warm-up, whose first step is not lost at zero, then falls over
    the rest of the trial: linearly, as half a cosine (Loshchilov & Hutter 2017), as a
    polynomial, or not at all. Above zero at every step before `total_steps`.

    Args:
        phase_start: the step at which the present phase began; with `rewarmup_steps` the
            learning rate rises again from there, unless it is the trial's first phase.
    """
    warmup = training.warmup_steps
    if warmup is None:
        warmup = math.ceil(training.warmup_ratio * total_steps - 1e-9)
    warmup = min(warmup, total_steps)
    factor = _decay((step - warmup) / max(1, total_steps - warmup), training)
    if step < warmup:
        factor = (step + 1) / warmup
    if phase_start > 0 and step - phase_start < training.rewarmup_steps:
        factor *= (step - phase_start + 1) / training.rewarmup_steps
    return factor


def _decay(progress: float, training: TrainingConfig) -> float:
    if training.lr_schedule == "linear":
        return 1.0 - progress
    if training.lr_schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if training.lr_schedule == "polynomial":
        return max(0.0, 1.0 - progress) ** training.lr_power
    assert training.lr_schedule == "constant", training.lr_schedule
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
