"""How much goes through the model at once, and what to try where that ran out of memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from training.config import TrainingConfig
from training.schedules import Phase

EVALUATION_TOKENS = {"cpu": 2_048, "cuda": 65_536}
"""Padded tokens in one forward pass of an evaluation, before any of them turned out not to fit."""

Moment = Literal["engine", "step", "update", "evaluation"]
"""What ran out of memory: making an engine, a forward or backward pass, the optimizer, an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What goes through the model at once, on one worker."""

    micro_batch: int
    """Examples, in training."""
    evaluation_tokens: int
    """Padded tokens, in an evaluation."""


def key(training: TrainingConfig, phase: Phase, boundary: int) -> str:
    """What is remembered of memory is remembered for this, which decides what a phase takes."""
    zero = training.zero
    parts = [f"boundary {boundary}", f"{len(phase.blocks)} blocks", training.precision, training.optimizer]
    parts.append(f"zero {zero.stage} {zero.offload}")
    return ", ".join(parts + ["recompute"] * training.activation_checkpointing)


def smaller(sizes: Sizes, moment: Moment, *, longest: int) -> Sizes | None:
    """The sizes to try after `sizes` ran out of memory; None where there are none.

    `longest`: tokens of the longest example, less than which an evaluation cannot take.
    """
    if moment == "evaluation" and sizes.evaluation_tokens > longest:
        return replace(sizes, evaluation_tokens=max(longest, sizes.evaluation_tokens // 2))
    # To make an engine takes the same memory whatever its batches.
    if moment in ("step", "update") and sizes.micro_batch > 1:
        return replace(sizes, micro_batch=sizes.micro_batch // 2)
    return None


def tighter(sizes: Sizes, limit: Sizes | None) -> Sizes:
    """The smaller of each."""
    if limit is None:
        return sizes
    return Sizes(
        micro_batch=min(sizes.micro_batch, limit.micro_batch),
        evaluation_tokens=min(sizes.evaluation_tokens, limit.evaluation_tokens),
    )
