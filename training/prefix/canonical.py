"""How the frozen prefix is computed: in canonical batches, whether its output is stored or not.

Kernels round differently for different shapes, so an example always goes through the prefix in
a batch of the same shape: a fixed number of rows, as wide as its own length asks for. What its
neighbours there are does not matter, as long as they never change which kernel runs: a model
leaves out the attention mask where no row has padding, so rows that fill the width have batches
of their own. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from training.batches import WIDTH_MULTIPLE

ROWS = {"cpu": 8, "cuda": 32}
"""Rows of a canonical batch by type of device: enough to keep it busy, few enough to fill."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One pass through the prefix."""

    indices: np.ndarray
    """int64 [rows]: examples of the split; the first repeated where there are not enough."""
    count: int
    """How many of them are wanted."""
    width: int
    """Columns."""


def canonical(lengths: np.ndarray, indices: np.ndarray, rows: int) -> Iterator[Batch]:
    """The canonical batches of some examples, the widest first.

    Args:
        lengths: int64 [n], tokens of all examples of the split. The longest bounds the width.
        indices: int64 [b], the examples.
        rows: of a batch.
    """
    longest = int(lengths.max())
    own = lengths[indices]
    # One column more than the example has, so that there is padding, except at the greatest width.
    widths = np.minimum(-(-(own + 1) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, longest)
    kinds = 2 * widths + (own == longest)
    order = np.argsort(-kinds, kind="stable")
    for start, stop in _runs(kinds[order]):
        for first in range(start, stop, rows):
            chosen = indices[order[first : min(first + rows, stop)]]
            filler = np.repeat(chosen[:1], rows - len(chosen))
            yield Batch(
                indices=np.concatenate([chosen, filler]).astype(np.int64),
                count=len(chosen),
                width=int(widths[order[start]]),
            )


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and end of each run of equal values."""
    cuts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return ((a, b) for a, b in pairwise(cuts) if b > a)
