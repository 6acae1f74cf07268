"""What training takes in arithmetic, by the blocks that are thawed. A pure function of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from training.schedules import Phase

# A block's forward pass is the unit; gradients by its input and by its weights take one each. The head
# is small beside it.
_HEAD = 0.25


def compute(phases: Sequence[Phase], num_blocks: int, epochs: float) -> float:
    """What the first `epochs` epochs take, in epochs of full training of the same model.

    Blocks below the lowest thawed one are not run: their output is taken from the store. Of L blocks, L - b
    above the boundary run forward and hand gradients on; the k thawed ones take gradients of their
    weights: (2 (L - b) + k) / 3 L of full training, so k / L where the top k are thawed, and next
    to nothing for the head alone.

    Args:
        phases: of the trial, in order, as `training.schedules.phases` gives them.
    """
    full = 3 * num_blocks + _HEAD
    ends = [min(phase.start_epoch, epochs) for phase in phases] + [epochs]
    taken = 0.0
    for phase, (start, end) in zip(phases, pairwise(ends), strict=True):
        running = num_blocks - max(phase.boundary(num_blocks), 0)
        taken += (end - start) * (2 * running + len(phase.blocks) + _HEAD) / full
    return taken
