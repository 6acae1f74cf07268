"""Linear layers on a CPU, by the library whose kernels use the whole of its vector unit.

torch hands fp32 products to MKL, which on processors of other makers than Intel's leaves AVX-512 alone:
half the speed. oneDNN, which torch has for low precisions, does not mind who made the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@cache
def library() -> str:
    """What multiplies fp32 matrices of linear layers on this CPU: `onednn`, or `torch`, whatever it takes."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return "onednn" if wide and there and _maker() not in ("GenuineIntel", "") else "torch"


def adopt(module: nn.Module) -> None:
    """Make the linear layers of a module multiply by `library`. Their parameters stay as they are."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = Linear


class Linear(nn.Linear):
    """torch's layer, but for the library that multiplies in fp32 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self.product(input, nn.functional.linear)

    def product(self, x: Tensor, otherwise: Callable[..., Tensor]) -> Tensor:
        """The layer's output; where the library is of no use, by a function like torch's `linear`."""
        apt = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not apt or library() == "torch":
            return otherwise(x, self.weight, self.bias)
        found: Tensor = _Product.apply(x, self.weight, self.bias)
        return found


class _Product(torch.autograd.Function):
    """x W' + b and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _times(x.contiguous(), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        # Of rows that lie apart only its slow reference knows how to multiply.
        rows = gradient.contiguous().view(-1, gradient.shape[-1])
        return (
            _times(rows, weight.t()).view(x.shape) if of_x else None,
            _times(rows.t(), x.contiguous().view(-1, x.shape[-1]).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _maker() -> str:
    """The `vendor_id` of the CPU; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
