"""Attention on a CPU in a low precision.

torch's fused attention has a backward pass there that takes ten times as long as plain products do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def adopt() -> None:
    """Make models of this process whose attention is `sdpa` attend by `attend`."""
    AttentionInterface.register("sdpa", attend)


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any
) -> tuple[Tensor, None]:
    """[B, heads, T, D] to [B, T, heads, D], as Transformers has it; by plain products where faster."""
    slow = query.device.type == "cpu" and query.dtype != torch.float32
    if slow and query.requires_grad:
        with sdpa_kernel(SDPBackend.MATH):
            return sdpa_attention_forward(module, query, key, value, *args, **settings)
    return sdpa_attention_forward(module, query, key, value, *args, **settings)
