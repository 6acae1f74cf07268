"""Which examples make up which step, and the arrays the model sees.

Everything is a pure function of lengths, seed and position, so that a resumed trial, or one on
another number of workers, goes through the same global batches. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from training.data import Split

WIDTH_MULTIPLE = 8
"""Widths are rounded up to this, so that few shapes occur: each new one costs kernels a set-up."""

_POOL_BATCHES = 50
"""Batches that are bucketed by length together: more means less padding, less means more mixing."""

_SHUFFLE_TAG = 0x5348_5546
"""Sets this stream of random numbers apart from others of the same trial seed."""


@dataclass(frozen=True, kw_only=True)
class Micro:
    """What one worker runs through the model at once."""

    indices: np.ndarray
    """int64 [b], rows of the split; b >= 1."""
    weights: np.ndarray
    """float32 [b]: 1 for examples of the batch, 0 for one that only gives an idle worker work."""


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Optimizer steps in one pass over `n` examples; the last step may have a smaller batch."""
    return -(-n // batch_size)


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The global batches of one epoch: int64 [batch_size] each, the last one what is left over.

    All examples are shuffled and cut into pools of 50 batches. In a pool they are sorted by
    length, those of one length staying in random order, and cut into batches, which are
    shuffled over the epoch. What does not fill a batch is drawn evenly from all examples and
    comes last, so every step before it has exactly `batch_size` examples.

    `lengths`: int64 [n], tokens of each example.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, _SHUFFLE_TAG])))
    order = rng.permutation(len(lengths)).astype(np.int64)
    full = len(order) - len(order) % batch_size
    lengths = np.asarray(lengths)
    batches: list[np.ndarray] = []
    for start in range(0, full, _POOL_BATCHES * batch_size):
        pool = order[start : min(start + _POOL_BATCHES * batch_size, full)]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches.extend(pool.reshape(-1, batch_size))
    batches = [batches[i] for i in rng.permutation(len(batches))]
    if full < len(order):
        batches.append(order[full:])
    return batches


def split(
    batch: np.ndarray, lengths: np.ndarray, world_size: int, micro_batch_size: int
) -> list[list[Micro]]:
    """A global batch as [accumulation step][rank] micro-batches of at most `micro_batch_size` rows.

    Every rank gets the same number of accumulation steps, as collectives need. The rows with
    weight 1 are those of the batch, each once. Rows go in order of length, so that the
    micro-batches of one step are of similar width; sizes differ by at most one row. A rank that
    is left without rows repeats the shortest example with weight 0.
    """
    assert len(batch) > 0
    rows = batch[np.argsort(lengths[batch], kind="stable")]
    per_rank = -(-len(rows) // world_size)
    accumulation = -(-per_rank // micro_batch_size)
    idle = Micro(indices=rows[:1], weights=np.zeros(1, np.float32))
    cells = [
        Micro(indices=cell, weights=np.ones(len(cell), np.float32)) if len(cell) else idle
        for cell in np.array_split(rows, accumulation * world_size)
    ]
    return [cells[i : i + world_size] for i in range(0, len(cells), world_size)]


def width(longest: int, *, cap: int, multiple: int = WIDTH_MULTIPLE) -> int:
    """Columns for rows of up to `longest` tokens: rounded up to a multiple, at most `cap`."""
    assert longest <= cap, (longest, cap)
    return min(-(-longest // multiple) * multiple, cap)


def tokens_of(offsets: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Where the tokens of some examples are, one example after the other: int64 [tokens].

    `offsets`: int64 [n + 1], starts of all examples, and the end; `indices`: int64 [b].
    """
    starts = offsets[indices]
    lengths = offsets[indices + 1] - starts
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1])) + np.repeat(starts - (ends - lengths), lengths)


def collate(split: Split, indices: np.ndarray, width: int, pad_id: int) -> dict[str, np.ndarray]:
    """Examples of a split as rectangular arrays, padded on the right.

    `indices`: int64 [b]; `width` >= their longest. Returns `input_ids` and `attention_mask`
    int64 [b, width], `token_type_ids` likewise where the split has segments, `labels` int64 [b].
    """
    lengths = split.lengths[indices]
    assert lengths.max() <= width, (lengths.max(), width)
    mask = np.arange(width) < lengths[:, None]
    tokens = tokens_of(split.offsets, indices)
    arrays = {
        "input_ids": np.full(mask.shape, pad_id, np.int64),
        "attention_mask": mask.astype(np.int64),
        "labels": np.asarray(split.labels[indices], np.int64),
    }
    arrays["input_ids"][mask] = split.ids[tokens]
    if split.segments is not None:
        arrays["token_type_ids"] = np.zeros(mask.shape, np.int64)
        arrays["token_type_ids"][mask] = split.segments[tokens]
    return arrays


def evaluation_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """All examples, longest first, in batches of at most `batch_tokens` padded tokens.

    int64 [b] each, at least one example whatever its length. Longest first, so that memory is
    at its highest at once and not somewhere in the middle.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable").astype(np.int64)
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        columns = max(width(longest, cap=max(longest, batch_tokens)), 1)
        stop = start + max(batch_tokens // columns, 1)
        batches.append(order[start:stop])
        start = stop
    return batches
