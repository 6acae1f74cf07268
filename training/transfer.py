"""From the host to the device."""

from __future__ import annotations

import torch
from torch import Tensor


def there(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; waits for nothing that is going on there."""
    if device.type == "cpu":
        return tensor
    # Out of pageable memory a copy would wait for all that was asked of the device before.
    return tensor.pin_memory().to(device, non_blocking=True)
