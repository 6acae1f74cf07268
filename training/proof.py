"""After each phase a trial proves its schedule: what was frozen did not move, what thawed did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from training.config import TrainingConfig
from training.optim import Group
from training.optimizers import OPTIMIZERS

# A step below this share of the largest weight may round away: then no motion proves nothing.
_VISIBLE = 2.0**-22
# What is left of a gradient at least, where micro-batches and ranks cancel each other, or it is clipped.
_LEFT = 2.0**-10
# A gradient below this share of the largest one may be rounding alone, which can cancel out: softmax
# takes a key's bias out of the model, so its gradient is zero but for that.
_ROUNDING = 2.0**-18


class BrokenProof(RuntimeError):
    """A phase did not train what its schedule says."""


class Witness:
    """Sees which tensors get a gradient, from the first micro-batch of a phase on.

    Args:
        loss_scale: what the loss was multiplied by, and the gradients are to be divided.
    """

    def __init__(self, module: nn.Module, loss_scale: float = 1.0) -> None:
        self._loss_scale = loss_scale
        self.seen: set[str] = set()
        self.largest: dict[str, float] = {}
        """Largest absolute value of each tensor's gradients while it was watched."""
        self._handles = [
            parameter.register_hook(self._hook(name))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]

    def settle(self) -> None:
        """Stop watching: after the first step there is evidence enough."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def see(gradient: Tensor) -> None:
            largest = float(gradient.abs().max()) / self._loss_scale
            if largest != 0:  # also where it is not a number
                self.seen.add(name)
                self.largest[name] = max(largest, self.largest.get(name, 0.0))

        return see


def step_sizes(
    groups: Sequence[Group], lr_factor: float, witness: Witness, training: TrainingConfig
) -> dict[str, float]:
    """How far the largest step moved each tensor in the optimizer, at least, as far as is known.

    Args:
        lr_factor: the largest factor on the learning rates at a step that was taken.
    """
    kind = OPTIMIZERS[training.optimizer]
    loudest = max(witness.largest.values(), default=0.0)
    sizes: dict[str, float] = {}
    for group in groups:
        for name in group.names:
            gradient = witness.largest.get(name, 0.0)
            left = gradient * _LEFT if gradient > _ROUNDING * loudest else 0.0
            # Where steps are normalised a gradient is divided by its own size, and epsilon.
            scale = left / (left + training.adam_epsilon) if kind.normalises else left
            sizes[name] = group.learning_rate * lr_factor * scale
    return sizes


def prove(
    *,
    phase: str,
    frozen: Iterable[tuple[str, Tensor]],
    expected: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    with_gradient: set[str],
    step_size: Mapping[str, float],
    touched: Iterable[str],
) -> str | None:
    """Check a phase that has just ended.

    Args:
        phase: its name, for the message.
        frozen: the tensors that should not have moved, as they are now, at any precision.
        expected: fp32 values of those tensors.
        before: fp32 values of the thawed tensors at the start of the phase.
        after: fp32 values of the thawed tensors now.
        with_gradient: the thawed tensors that got a gradient.
        step_size: how far each tensor in the optimizer has moved in one step, at least.
        touched: the pretrained tensors that were written to.

    Returns:
        What is wrong, naming the tensors that moved, or stood still, against the schedule; None
        where nothing is. One rank may see what another does not, so nothing is raised here.
    """
    if written := sorted(touched):
        return f"phase {phase}: the pretrained {_some(written)} was written to"
    silent = sorted(set(before) - (after.keys() & step_size.keys()))
    if silent:
        return f"phase {phase}: {_some(silent)} has no optimizer state though thawed"
    moved = [
        name for name, tensor in frozen if not _same(tensor.cpu(), expected[name].to(tensor.dtype).cpu())
    ]
    if moved:
        return f"phase {phase}: {_some(moved)} moved though frozen"
    stuck = [
        name
        for name in sorted(with_gradient)
        if torch.equal(before[name], after[name])
        and step_size[name] > _VISIBLE * float(before[name].abs().max())
    ]
    if stuck:
        return f"phase {phase}: {_some(stuck)} got a gradient but did not move though thawed"
    return None


def _same(tensor: Tensor, other: Tensor) -> bool:
    """Whether the bits are the same; NaN is like NaN, as in weights that diverged before they froze."""
    return torch.equal(tensor, other) or bool(((tensor == other) | (tensor.isnan() & other.isnan())).all())


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
