"""The part of the model that a phase holds: built at its present weights, thawed by schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.blocks import Blocks
from training.schedules import Phase


class Weights(Mapping[str, Tensor]):
    """The model's present fp32 weights by name: the trial's own over the pretrained ones."""

    def __init__(self, blocks: Blocks, own: Mapping[str, Tensor]) -> None:
        self._blocks, self._own = blocks, own

    def __getitem__(self, name: str) -> Tensor:
        return self._own[name] if name in self._own else self._blocks.model.get_parameter(name).detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks.names)

    def __len__(self) -> int:
        return len(self._blocks.names)


def boundary(phase: Phase, blocks: Blocks, own: Mapping[str, Tensor]) -> int:
    """Number of leading blocks that are as pretrained; -1 where the embeddings are not.

    The suffix begins there: at the lowest unit that trains now or has trained before.
    """
    units = {blocks.unit(name) for name in own}
    if phase.embeddings or "embeddings" in units:
        return -1
    return min([phase.boundary(blocks.num_blocks), *(unit for unit in units if isinstance(unit, int))])


def build(phase: Phase, blocks: Blocks, own: Mapping[str, Tensor], *, dropout: float | None) -> nn.Module:
    """The suffix for `phase` at the weights `own`, with `requires_grad` set on what is thawed.

    Args:
        own: fp32 values of tensors that differ from the pretrained ones.
        dropout: probability for all its dropout layers; the model's own where None.
    """
    module = blocks.suffix(boundary(phase, blocks, own))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in own:
                parameter.copy_(own[name])
            parameter.requires_grad_(is_thawed(phase, blocks, name))
    if dropout is not None:
        _set_dropout(module, dropout)
    return module


def _set_dropout(module: nn.Module, probability: float) -> None:
    """Set all dropout of a module: layers, and the probabilities that others hand to functions."""
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = probability
        for name, value in vars(child).items():
            if name.endswith("dropout") and isinstance(value, int | float):
                setattr(child, name, probability)


def recompute_activations(module: nn.Module) -> None:
    """Make the blocks of a suffix that train compute their activations again in the backward pass.

    Transformers' own switch looks for token embeddings, and for blocks; a suffix may have neither.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for child in module.modules():
        if isinstance(child, GradientCheckpointingLayer):
            child._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            child.gradient_checkpointing = True


def set_modes(module: nn.Module, phase: Phase, blocks: Blocks) -> None:
    """Thawed units train, frozen ones run as in evaluation: frozen means no dropout either."""
    for name, child in module.named_modules():
        child.training = is_thawed(phase, blocks, f"{name}.")


def is_thawed(phase: Phase, blocks: Blocks, name: str) -> bool:
    """Whether the parameter or module called `name` trains in `phase`."""
    unit = blocks.unit(name)
    if unit == "head":
        return phase.head
    return phase.embeddings if unit == "embeddings" else unit in phase.blocks
