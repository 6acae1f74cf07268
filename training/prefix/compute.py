"""Computes the frozen prefix of examples, in canonical batches."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from training.batches import collate
from training.data import Split
from training.prefix.canonical import ROWS, Batch, canonical
from training.prefix.states import States, flatten, pick, spread
from training.transfer import there

_PROBED = 3
"""Canonical batches that the probe of a prefix computes, each in two orders, at the most."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the states at a boundary are computed.

    Args:
        module: a segment of the model on the device: from tokens, or from the states of `below`.
        below: all states of the split at a lower boundary, [tokens, D] of each stack.
    """

    module: nn.Module
    split: Split
    pad_id: int
    device: torch.device
    rows: int
    below: States = ()

    def run(self, batch: Batch) -> States:
        """States [rows, width, D] of one canonical batch."""
        split, device = self.split, self.device
        arrays = collate(split, batch.indices, batch.width, self.pad_id)
        arrays.pop("labels")
        inputs = {name: there(torch.from_numpy(array), device) for name, array in arrays.items()}
        if self.below:
            lengths = split.lengths[batch.indices]
            inputs["states"] = tuple(  # type: ignore[assignment]
                spread(there(pick(flat, split, batch.indices), device), lengths, batch.width)
                for flat in self.below
            )
        with torch.no_grad():
            states: States = self.module(**inputs)
        return states

    def pieces(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, States]]:
        """Some of `indices` at a time, and their states end to end: [tokens, D] of each stack."""
        for batch in canonical(self.split.lengths, indices, self.rows):
            wanted = batch.indices[: batch.count]
            lengths = self.split.lengths[wanted]
            yield wanted, tuple(flatten(state, lengths) for state in self.run(batch))

    def rectangle(self, indices: np.ndarray, width: int) -> States:
        """States [b, width, D] of the examples `indices`, in their order; zero where there is padding."""
        place = {int(index): row for row, index in enumerate(indices)}
        made: list[Tensor] = []
        lengths = self.split.lengths
        for wanted, states in self.pieces(np.unique(indices)):
            if not made:
                made = [s.new_zeros(len(indices), width, s.shape[1]) for s in states]
            rows = there(torch.tensor([place[int(index)] for index in wanted]), self.device)
            for whole, flat in zip(made, states, strict=True):
                whole[rows] = spread(flat, lengths[wanted], width)
        for row, index in enumerate(indices):
            if place[int(index)] != row:  # an example that is there twice
                for whole in made:
                    whole[row] = whole[place[int(index)]]
        return tuple(made)


def rows_for(device: torch.device) -> int:
    """Rows of a canonical batch on a device."""
    return ROWS.get(device.type, ROWS["cuda"])


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a probe of a recipe found."""

    rows: int
    """Rows of a canonical batch with which an example's states do not depend on its neighbours."""
    seconds_per_token: float
    """Time to compute one real token."""


def probe(recipe: Recipe) -> Probe:
    """Check that an example's states are the same bits whatever its place and its neighbours are.

    They are with all kernels that we know, since the shape is the same. Where one is of another
    kind, each example goes alone.
    """
    split = recipe.split
    tried = list(_spaced(canonical(split.lengths, np.arange(len(split)), recipe.rows)))
    same, tokens, seconds = True, 0, 0.0
    for batch in tried:
        first = recipe.run(batch)
        order = np.roll(np.arange(recipe.rows)[::-1], 1)
        began = time.perf_counter()
        again = recipe.run(replace(batch, indices=batch.indices[order]))
        if recipe.device.type == "cuda":
            torch.cuda.synchronize(recipe.device)
        seconds += time.perf_counter() - began
        tokens += int(split.lengths[batch.indices].sum())
        lengths = split.lengths[batch.indices[order]]
        for one, other in zip(first, again, strict=True):
            picked = one.index_select(0, torch.from_numpy(order).to(recipe.device))
            same = same and torch.equal(flatten(picked, lengths), flatten(other, lengths))
    return Probe(rows=recipe.rows if same else 1, seconds_per_token=seconds / tokens)


def _spaced(batches: Iterator[Batch]) -> list[Batch]:
    """The widest, the narrowest, and one between."""
    found = list(batches)
    return [found[round(at)] for at in np.linspace(0, len(found) - 1, min(_PROBED, len(found)))]


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """A module where it computes: itself on a CPU, else a copy, so that the model stays where it is."""
    return module if device.type == "cpu" else copy.deepcopy(module).to(device)
