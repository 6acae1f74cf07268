"""Between the host and the device."""

from __future__ import annotations

import gc

import torch
from torch import Tensor


def there(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; waits for nothing that is going on there."""
    if device.type == "cpu":
        return tensor
    # Out of pageable memory a copy would wait for all that was asked of the device before.
    return pinned(tensor, device).to(device, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host where `device` can fetch it from; itself where it is there."""
    return tensor if device.type == "cpu" else tensor.pin_memory()


def release(device: torch.device) -> None:
    """Free what nobody refers to any more, and give back the memory that is only held to save time."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
