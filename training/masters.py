"""fp32 weights beside a module that computes in bf16, where a worker has nobody to share them with.

DeepSpeed's optimizers for low precisions are made to shard: alone as well they copy, reduce and check
gradients one tensor at a time, which takes longer than a small model's step. Here it is one call for all.
After Micikevicius et al. 2018; bf16 has fp32's range, and needs neither loss scale nor search for overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import Parameter


class Masters:
    """The fp32 tensors that the optimizer of a module trains in the place of its own.

    Args:
        module: what computes. Its parameters are cast to `dtype`; buffers stay as they are.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._of: dict[Parameter, Parameter] = {}
        for parameter in module.parameters():
            if parameter.requires_grad:
                self._of[parameter] = Parameter(parameter.data.float())  # what is fp32 already moves over
            parameter.data = parameter.data.to(dtype)

    def of(self, parameter: Parameter) -> Parameter:
        """The master of a thawed parameter of the module, in fp32 and of its shape."""
        return self._of[parameter]

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients that a backward pass left in the module to the masters', and clear them."""
        fresh: list[tuple[Tensor, Tensor]] = []
        grown: list[tuple[Tensor, Tensor]] = []
        for low, full in self._of.items():
            if low.grad is None:
                continue
            if full.grad is None:
                full.grad = torch.empty_like(full)
                fresh.append((full.grad, low.grad))
            else:
                grown.append((full.grad, low.grad))
            low.grad = None
        for pairs, operation in ((fresh, torch._foreach_copy_), (grown, torch._foreach_add_)):
            if pairs:
                operation([full for full, _ in pairs], [low for _, low in pairs])

    @torch.no_grad()
    def spread(self) -> None:
        """Round the masters into the module, and clear their gradients."""
        torch._foreach_copy_([*self._of], [*self._of.values()])
        for full in self._of.values():
            full.grad = None

    def clear(self) -> None:
        """Let go of all of it."""
        self._of.clear()
