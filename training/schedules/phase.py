"""A phase: a stretch of training in which the same layers are thawed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from training.config import UnfreezingConfig


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What trains from `start_epoch` until the next phase, or the end.

    Blocks are counted from the input: 0 is the first, `num_blocks - 1` the top one.
    """

    name: str
    """`head`, `top-2`, `gradual-3`, `lisa-4`, `full`, `phase-1` ..."""
    start_epoch: float
    """Where it begins, in epochs; 0 for the first phase."""
    blocks: tuple[int, ...]
    """Indices of the thawed blocks, ascending."""
    head: bool = True
    embeddings: bool = False

    def boundary(self, num_blocks: int) -> int:
        """Number of leading frozen blocks, 0 to `num_blocks`; -1 where the embeddings are thawed.

        Below the boundary nothing trains, so no gradient has to reach it.
        """
        if self.embeddings:
            return -1
        return self.blocks[0] if self.blocks else num_blocks


def top_blocks(depth: int, num_blocks: int) -> tuple[int, ...]:
    """Indices of the top `depth` of `num_blocks` blocks, ascending."""
    return tuple(range(num_blocks - depth, num_blocks))


def check_depth(depth: int, num_blocks: int) -> None:
    """Raise ValueError where `unfreezing.depth` is deeper than the model."""
    if depth > num_blocks:
        raise ValueError(
            f"unfreezing.depth: {depth} is deeper than the model, which has {num_blocks} blocks; "
            f"use 1 to {num_blocks}"
        )


def thaw_epochs(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float) -> tuple[float, ...]:
    """When a schedule that thaws one block after the other thaws each of its `depth`, in epochs.

    The i-th, counted from 1, thaws at `points[i - 1] * epochs`. Without points it is
    `i / (2 * depth)`: evenly over the first half, so that the whole depth trains for the second.

    Raises ValueError where `depth` is deeper than the model, or `points` are not one for each
    block, ascending.
    """
    depth, points = unfreezing.depth, unfreezing.points
    check_depth(depth, num_blocks)
    if points is None:
        points = [i / (2 * depth) for i in range(1, depth + 1)]
    if len(points) != depth:
        raise ValueError(
            f"unfreezing.points: {len(points)} points for unfreezing.depth {depth}; "
            f"give one for each block that thaws, or none to spread them evenly"
        )
    if any(later <= earlier for earlier, later in pairwise(points)):
        raise ValueError(f"unfreezing.points: {points} must ascend; sort them and drop repeats")
    return tuple(point * epochs for point in points)


def describe(phase: Phase, num_blocks: int) -> str:
    """The thawed layers in words: `head`, `head + block 5`, `head + blocks 0-1, 4-5`, `all`."""
    if phase.head and phase.embeddings and len(phase.blocks) == num_blocks:
        return "all"
    parts = ["head"] if phase.head else []
    if phase.blocks:
        noun = "block" if len(phase.blocks) == 1 else "blocks"
        parts.append(f"{noun} {', '.join(_runs(phase.blocks))}")
    if phase.embeddings:
        parts.append("embeddings")
    return " + ".join(parts)


def _runs(blocks: Iterable[int]) -> list[str]:
    """Ascending indices as runs: (0, 1, 2, 5) -> ["0-2", "5"]."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]
