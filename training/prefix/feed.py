"""What the suffix of a phase takes in: batches of examples, with the states at the boundary."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from training.batches import WIDTH_MULTIPLE, collate, width
from training.blocks import Blocks
from training.data import Data, Split
from training.linear import library
from training.prefix.compute import Probe, Recipe, on_device, probe, rows_for
from training.prefix.entries import Entry, Shape
from training.prefix.states import States, pick, spread
from training.prefix.store import Shelves, key_of
from training.transfer import pinned, there

_FORMAT = 1
"""Raised whenever the states, or how they are computed, change."""

_UNRELATED = {"_name_or_path", "id2label", "label2id", "num_labels", "transformers_version", "architectures"}


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The frozen part of one model on one data set: computes its states, or finds them in the store."""

    blocks: Blocks
    data: Data
    fingerprint: str
    """Of the pretrained weights."""
    cap: int
    """Columns of a batch at the most."""
    shelves: Shelves
    foreseen: tuple[int, ...] = ()
    """Boundaries that trials may ask for, ascending: each is made on the way to those above it."""
    segments: dict[tuple[int | None, int, torch.dtype], nn.Module] = field(default_factory=dict)
    """On the CPU, by boundaries and precision."""
    probes: dict[tuple[int, str, torch.dtype, str], Probe] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """Entries that there was no room for."""

    def feed(self, boundary: int, dtype: torch.dtype, device: torch.device) -> Feed:
        """The batches of a phase whose suffix begins at `boundary`; -1 where nothing is frozen below."""
        return Feed(frozen=self, boundary=boundary, dtype=dtype, device=device)

    def segment(self, low: int | None, high: int, dtype: torch.dtype) -> nn.Module:
        """The blocks between two boundaries, built once for a gang."""
        key = (low, high, dtype)
        if key not in self.segments:
            self.segments[key] = self.blocks.segment(low, high, dtype)
        return self.segments[key]

    def entry(self, name: str, boundary: int, dtype: torch.dtype, device: torch.device) -> Entry | None:
        """The states of a split at a boundary from the store, made where they are missing; open.

        None where they are not stored.
        """
        split = self.split(name)
        shape = self._shape(split, dtype)
        described = self._described(name, boundary, dtype, device)
        key = key_of(described)
        present = self.shelves.find(key, shape)
        if present is not None or key in self.refused:
            return present
        self._pave(name, boundary, dtype, device)
        lower: Entry | None = None

        def probed() -> Probe:
            return self._probe(self.recipe(name, boundary, dtype, device), boundary, name)

        def recipe() -> Recipe:
            nonlocal lower
            lower, low = self._below(name, boundary, dtype, device)
            return self.recipe(name, boundary, dtype, device, low=low, below=lower.states if lower else ())

        try:
            entry = self.shelves.obtain(described, shape, probed=probed, recipe=recipe)
        finally:
            if lower is not None:
                lower.close()
        if entry is None:
            self.refused.add(key)
        return entry

    def recipe(
        self,
        name: str,
        boundary: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        low: int | None = None,
        below: States = (),
        module: nn.Module | None = None,
    ) -> Recipe:
        """How the states at a boundary are computed, from tokens or from those of a lower boundary.

        `module`: the segment, where it is on the device already.
        """
        made = Recipe(
            module=on_device(self.segment(low, boundary, dtype), device) if module is None else module,
            split=self.split(name),
            pad_id=self.data.pad_id,
            device=device,
            rows=rows_for(device),
            below=below,
        )
        rows = self._probe(made, boundary, name).rows
        return replace(made, rows=rows)

    def split(self, name: str) -> Split:
        """`train`, `validation` or `test`."""
        split: Split = getattr(self.data, name)
        return split

    def _probe(self, recipe: Recipe, boundary: int, name: str) -> Probe:
        module_dtype = next(recipe.module.parameters()).dtype
        key = (boundary, name, module_dtype, str(recipe.device))
        if key not in self.probes:
            self.probes[key] = probe(recipe)
        return self.probes[key]

    def _pave(self, name: str, boundary: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the highest foreseen boundary below a missing one, as long as there is room to spare.

        What lies on the way is computed anyhow, and whoever asks for it later has it for nothing.
        """
        size = self._shape(self.split(name), dtype).size
        below = [low for low in self.foreseen if 0 < low < boundary]
        if below and self.shelves.spare((len(below) + 1) * size):
            entry = self.entry(name, below[-1], dtype, device)
            if entry is not None:
                entry.close()

    def _below(
        self, name: str, boundary: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Entry | None, int | None]:
        """The highest boundary below whose states are stored, if any."""
        shape = self._shape(self.split(name), dtype)
        for low in range(boundary - 1, 0, -1):
            entry = self.shelves.find(key_of(self._described(name, low, dtype, device)), shape)
            if entry is not None:
                return entry, low
        return None, None

    def _shape(self, split: Split, dtype: torch.dtype) -> Shape:
        config: Any = self.blocks.model.config
        return Shape(
            tokens=int(split.offsets[-1]),
            hidden=int(config.hidden_size),
            stacks=self.blocks.num_states,
            dtype=dtype,
        )

    def _described(
        self, name: str, boundary: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Any]:
        """Everything that the states depend on, to the last bit."""
        config: Any = self.blocks.model.config
        settings = {key: value for key, value in config.to_dict().items() if key not in _UNRELATED}
        on_cpu = device.type == "cpu"
        return {
            "format": _FORMAT,
            "model": self.fingerprint,
            "settings": hashlib.sha256(
                json.dumps(settings, sort_keys=True, default=str).encode()
            ).hexdigest(),
            "attention": str(config._attn_implementation),
            "data": self.data.fingerprint,
            "split": name,
            "boundary": boundary,
            "precision": str(dtype),
            "device": device.type,
            "kind": torch.backends.cpu.get_cpu_capability() if on_cpu else torch.cuda.get_device_name(device),
            # A matrix product that is cut up among other threads may round in another way.
            "threads": torch.get_num_threads() if on_cpu else 0,
            "products": library() if on_cpu else "torch",
            "float32": _float32(on_cpu),
            "versions": [torch.__version__, transformers.__version__],
        }


def _float32(on_cpu: bool) -> list[str | None]:
    """What products of float32 are rounded to, by settings of the process and of the environment."""
    backends: Any = torch.backends
    products = (backends.mkldnn if on_cpu else backends.cuda).matmul
    settings = (products.fp32_precision, backends.fp32_precision)
    rounded = next((setting for setting in settings if setting != "none"), "ieee")
    return [rounded, None if on_cpu else os.environ.get("NVIDIA_TF32_OVERRIDE")]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some examples of a split, on the host, where the device can fetch them."""

    name: str
    indices: np.ndarray
    """int64 [b]."""
    inputs: dict[str, Tensor]
    """int64 [b, width] each, but `labels`: int64 [b]."""
    states: States
    """What the store has of them, end to end: [tokens, D] of each stack."""


@dataclass(kw_only=True)
class Feed:
    """Turns examples into what the suffix of a phase takes in. To be closed at the end of the phase."""

    frozen: Frozen
    boundary: int
    dtype: torch.dtype
    device: torch.device
    _open: dict[str, Entry | Recipe] = field(default_factory=dict)

    def rows(self, name: str, indices: np.ndarray) -> Rows:
        """Fetch some examples of a split that is `open`. It may be done on another thread."""
        split = self.frozen.split(name)
        longest = int(split.lengths[indices].max())
        # A new shape costs nothing where kernels are not made for shapes.
        exact = self.device.type == "cpu" and self.dtype == torch.float32
        columns = width(longest, cap=self.frozen.cap, multiple=1 if exact else WIDTH_MULTIPLE)
        arrays = collate(split, indices, columns, self.frozen.data.pad_id)
        source = self._open[name] if self.boundary >= 0 else None
        stored = source.states if isinstance(source, Entry) else ()
        return Rows(
            name=name,
            indices=indices,
            inputs={key: pinned(torch.from_numpy(array), self.device) for key, array in arrays.items()},
            states=tuple(pinned(pick(flat, split, indices), self.device) for flat in stored),
        )

    def batch(self, rows: Rows) -> tuple[dict[str, Any], Tensor]:
        """Inputs of the suffix, and labels (int64 [b]), of some examples, on the device.

        `input_ids` and `attention_mask`, int64 [b, width], and `token_type_ids` where the split has
        segments; with a boundary `states` as well: [b, width, D] of each stack, zero where there is
        padding. Those that are not stored are computed.
        """
        inputs: dict[str, Any] = {key: there(tensor, self.device) for key, tensor in rows.inputs.items()}
        labels = inputs.pop("labels")
        if self.boundary >= 0:
            inputs["states"] = self._states(rows)
        return inputs, labels

    def open(self, *names: str) -> None:
        """Find what the store has of some splits, or make it: before an engine takes the device's memory."""
        if self.boundary >= 0:
            for name in names:
                self._source(name)

    def stored(self, name: str) -> bool:
        """Whether the states of a split come from the store."""
        return isinstance(self._source(name), Entry)

    def close(self) -> None:
        """Let go of the store and, on a GPU, of the frozen blocks."""
        for source in self._open.values():
            if isinstance(source, Entry):
                source.close()
        self._open.clear()

    def _states(self, rows: Rows) -> States:
        source, columns = self._open[rows.name], rows.inputs["input_ids"].shape[1]
        if isinstance(source, Recipe):
            return source.rectangle(rows.indices, columns)
        lengths = self.frozen.split(rows.name).lengths[rows.indices]
        return tuple(spread(there(flat, self.device), lengths, columns) for flat in rows.states)

    def _source(self, name: str) -> Entry | Recipe:
        if name not in self._open:
            frozen = self.frozen
            place = (name, self.boundary, self.dtype, self.device)
            # The frozen blocks are on the device once for all splits.
            held = next((s.module for s in self._open.values() if isinstance(s, Recipe)), None)
            self._open[name] = frozen.entry(*place) or frozen.recipe(*place, module=held)
        return self._open[name]
