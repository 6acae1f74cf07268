"""Hidden states of examples, end to end: from ragged rows to rectangles and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.batches import tokens_of
from training.data import Split
from training.transfer import there

States = tuple[Tensor, ...]
"""Hidden states of each stack of the model: [B, T, D], or [tokens, D] end to end."""


def cells_of(lengths: np.ndarray, width: int) -> np.ndarray:
    """int64: the cells of a rectangle of this width that examples of these lengths fill, row by row."""
    ends = np.cumsum(lengths)
    firsts = np.arange(len(lengths)) * width
    return np.arange(int(ends[-1])) + np.repeat(firsts - (ends - lengths), lengths)


def spread(flat: Tensor, lengths: np.ndarray, width: int) -> Tensor:
    """Rows end to end, [tokens, D], as a rectangle [B, width, D]; zero where there is padding."""
    filled = flat.new_zeros(len(lengths) * width, flat.shape[1])
    cells = there(torch.from_numpy(cells_of(lengths, width)), flat.device)
    filled.index_copy_(0, cells, flat)
    return filled.view(len(lengths), width, flat.shape[1])


def flatten(state: Tensor, lengths: np.ndarray) -> Tensor:
    """The first rows of a rectangle [B, width, D] end to end: [tokens, D], without the padding."""
    cells = there(torch.from_numpy(cells_of(lengths, state.shape[1])), state.device)
    return state.reshape(-1, state.shape[2]).index_select(0, cells)


def pick(flat: Tensor, split: Split, indices: np.ndarray) -> Tensor:
    """The tokens of some examples, one example after the other, [tokens, D], out of all of the split's."""
    # numpy's, on one thread and without Python's lock: others may be computing meanwhile.
    rows = flat.view(torch.uint8).numpy().take(tokens_of(split.offsets, indices), axis=0)
    return torch.from_numpy(rows).view(flat.dtype)
