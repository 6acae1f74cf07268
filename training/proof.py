"""After each phase a trial proves its schedule: what was frozen did not move, what thawed did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

# A step below this share of the largest weight may round away: then no motion proves nothing.
_VISIBLE = 2.0**-22


class BrokenProof(RuntimeError):
    """A phase did not train what its schedule says."""


class Witness:
    """Sees which tensors get a gradient, from the first micro-batch of a phase on.

    Each tensor is watched until its first gradient that is not zero.
    """

    def __init__(self, module: nn.Module) -> None:
        self.seen: set[str] = set()
        self.largest: dict[str, float] = {}
        """Largest absolute value of each tensor's gradients while it was watched."""
        self._handles = {
            name: parameter.register_hook(self._hook(name))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def settle(self) -> None:
        """Stop watching: after the first step there is evidence enough."""
        for handle in self._handles.values():
            handle.remove()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def see(gradient: Tensor) -> None:
            largest = float(gradient.abs().max())
            if largest != 0:  # also where it is not a number
                self.seen.add(name)
                self.largest[name] = max(largest, self.largest.get(name, 0.0))

        return see


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
        step_size: the largest learning rate that each tensor in the optimizer has seen.
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
