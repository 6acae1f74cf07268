"""Optimizers by name: how each is built, and what it keeps of a tensor between phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from training.config import TrainingConfig

ParameterGroups = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One kind of optimizer."""

    build: Callable[[ParameterGroups, TrainingConfig], torch.optim.Optimizer]
    state: tuple[str, ...] | None
    """Names of its state tensors, each of the parameter's shape and zero at first; None where
    they have other shapes, and the optimizer makes them itself at the first step."""
    counts: bool = True
    """Whether it counts the steps of each tensor."""
    normalises: bool = True
    """Whether its steps are of the size of the learning rate, however small the gradient."""
    shards: bool = True
    """Whether it treats every element by itself, so that ZeRO may flatten and cut its tensors."""


def _adamw(groups: ParameterGroups, training: TrainingConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )


def _sgd(groups: ParameterGroups, training: TrainingConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.momentum, fused=True)


def _adafactor(groups: ParameterGroups, training: TrainingConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=training.learning_rate)


OPTIMIZERS: Mapping[str, Optimizer] = {
    # Kingma & Ba 2015; Loshchilov & Hutter 2019.
    "adamw": Optimizer(build=_adamw, state=("exp_avg", "exp_avg_sq")),
    "sgd": Optimizer(build=_sgd, state=("momentum_buffer",), counts=False, normalises=False),
    # Shazeer & Stern 2018: factors each matrix's second moment, so a matrix must stay whole.
    "adafactor": Optimizer(build=_adafactor, state=None, shards=False),
}


def check(training: TrainingConfig) -> None:
    """Check that optimizer, ZeRO stage and offload go together.

    Raises:
        ValueError: where they do not.
    """
    zero = training.zero
    if not OPTIMIZERS[training.optimizer].shards and zero.stage > 0:
        raise ValueError(
            f"zero.stage: {zero.stage} cuts matrices apart, and {training.optimizer} needs them whole; "
            f"use stage 0, or optimizer adamw or sgd"
        )
    if zero.offload == "optimizer" and zero.stage == 0:
        raise ValueError("zero.offload: optimizer needs zero.stage 1, 2 or 3, got 0")
    if zero.offload == "parameters" and zero.stage != 3:
        raise ValueError(f"zero.offload: parameters needs zero.stage 3, got {zero.stage}")
    if zero.offload != "none" and training.optimizer != "adamw":
        raise ValueError(f"zero.offload: works with optimizer adamw, got {training.optimizer}")
