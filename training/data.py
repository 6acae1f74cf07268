"""Examples as token ids: read, checked and tokenised once, then memory-mapped from a cache.

`prepare` keeps its arrays under a key that is a hash of everything they depend on: contents of
the data and tokenizer files, columns, lengths, limits, and the versions of what computes them.
With a warm cache it imports neither datasets nor torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from training.config import DataConfig, ModelConfig, TaskConfig
from training.models import load_config, load_tokenizer, max_tokens, model_directory, tokenizer_files
from training.sources import Rows, Source, open_source
from training.tasks import TASKS, Encoded, RowError, Task

_FORMAT = 1
"""Raised whenever the arrays or what they are made of change."""

_SPLITS = ("train", "validation", "test")
_ENCODE_ROWS = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Tokenised examples, end to end in memory-mapped arrays."""

    ids: np.ndarray
    """int32 [tokens]."""
    segments: np.ndarray | None
    """int8 [tokens], token type ids; None where they are all 0 or the model has none."""
    offsets: np.ndarray
    """int64 [n + 1]: example i is `ids[offsets[i]:offsets[i + 1]]`, never empty."""
    labels: np.ndarray
    """int64 [n], indices into the label names."""

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [n], tokens of each example."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """What a trial learns from and is measured on."""

    train: Split
    validation: Split
    test: Split | None
    label_names: tuple[str, ...]
    pad_id: int
    fingerprint: str
    """Hex digest of contents and tokenisation; equal data have equal fingerprints."""


def cache_root() -> Path:
    """Where Thaw keeps what it can compute again: `THAW_CACHE`, or `~/.cache/thaw`."""
    return Path(os.environ.get("THAW_CACHE") or "~/.cache/thaw").expanduser()


def prepare(model: ModelConfig, task: TaskConfig, data: DataConfig, *, cache: Path | None = None) -> Data:
    """Read, check and tokenise the data, or map what an earlier call left under `cache`.

    Any number of processes may call it at once. Raises ValueError, with the setting at fault,
    where model or data are not there or the rows do not fit the task.
    """
    root = cache_root() if cache is None else cache
    directory = Path(model_directory(model, weights=False))
    sources = {split: open_source(data, split, root) for split in _SPLITS}
    key = _key(directory, task, data, sources)
    entry = root / "data" / key
    loaded = _load(entry, key)
    if loaded is not None:
        return loaded
    arrays, meta = _compute(model, task, data, sources)
    _store(entry, arrays, meta)
    loaded = _load(entry, key)
    assert loaded is not None, entry
    return loaded


def _key(directory: Path, task: TaskConfig, data: DataConfig, sources: dict[str, Source | None]) -> str:
    # config.json says which tokenizer class reads the files, and how long inputs may be.
    files = [directory / "config.json", *tokenizer_files(directory), *sorted(directory.glob("*.py"))]
    described = {
        "format": _FORMAT,
        "versions": [version("tokenizers"), version("transformers")],
        "tokenizer": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "task": [task.type, *TASKS[task.type].columns(task), task.max_length],
        "data": {split: source.digest() for split, source in sources.items() if source},
        "limit": {split: getattr(data.limit, split) for split, source in sources.items() if source},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _compute(
    model: ModelConfig, task_config: TaskConfig, data: DataConfig, sources: dict[str, Source | None]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    task = TASKS[task_config.type]
    settings = {getattr(task_config, field.name): f"task.{field.name}" for field in fields(task_config)}
    columns = {column: settings[column] for column in task.columns(task_config)}
    rows = {
        split: source.read(columns, getattr(data.limit, split))
        for split, source in sources.items()
        if source is not None
    }
    labels = rows["train"].columns[task_config.label]
    try:
        label_names = task.label_names(labels)
    except RowError as error:
        raise ValueError(f"data.train: {rows['train'].place(error.row)}: {error}") from None
    except ValueError as error:
        raise ValueError(f"data.train: {rows['train'].parts[0][0]}: {error}") from None
    tokenizer = load_tokenizer(model)
    max_length = _max_length(model, task_config, tokenizer)
    arrays: dict[str, np.ndarray] = {}
    for split, table in rows.items():
        chunks = list(_encode(task, task_config, tokenizer, label_names, max_length, table, f"data.{split}"))
        arrays |= {f"{split}.{name}": array for name, array in _flatten(chunks).items()}
    meta = {"label_names": label_names, "pad_id": int(tokenizer.pad_token_id)}
    return arrays, meta


def _max_length(model: ModelConfig, task: TaskConfig, tokenizer: Any) -> int:
    limit = max_tokens(load_config(model), tokenizer)
    max_length = task.max_length if limit is None else min(task.max_length, limit)
    special = tokenizer.num_special_tokens_to_add(pair=task.text_pair is not None)
    if max_length <= special:
        raise ValueError(
            f"task.max_length: {max_length} leaves no room for text beside {special} special tokens; "
            f"use at least {special + 1}"
        )
    return max_length


def _encode(
    task: Task,
    config: TaskConfig,
    tokenizer: Any,
    label_names: tuple[str, ...],
    max_length: int,
    table: Rows,
    setting: str,
) -> Iterator[Encoded]:
    for start in range(0, len(table), _ENCODE_ROWS):
        chunk = {name: values[start : start + _ENCODE_ROWS] for name, values in table.columns.items()}
        try:
            yield task.encode(chunk, config, tokenizer, label_names, max_length=max_length)
        except RowError as error:
            raise ValueError(f"{setting}: {table.place(start + error.row)}: {error}") from None


def _flatten(chunks: list[Encoded]) -> dict[str, np.ndarray]:
    lengths = np.concatenate([np.fromiter(map(len, chunk.ids), np.int64) for chunk in chunks])
    arrays = {
        "ids": np.concatenate([_end_to_end(chunk.ids, np.int32) for chunk in chunks]),
        "offsets": np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        "labels": np.concatenate([chunk.labels for chunk in chunks]),
    }
    segments = [_end_to_end(chunk.segments, np.int8) for chunk in chunks if chunk.segments]
    if any(array.any() for array in segments):
        arrays["segments"] = np.concatenate(segments)
    return arrays


def _end_to_end(rows: list[list[int]], dtype: Any) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype) for row in rows])


def _store(entry: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write an entry whole or not at all: beside its place first, then renamed."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    except OSError as error:
        raise ValueError(
            f"the cache {entry.parent} cannot be written ({error.strerror}); set THAW_CACHE to another folder"
        ) from None
    try:
        for name, array in arrays.items():
            with (scratch / f"{name}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        (scratch / "meta.json").write_text(json.dumps({**meta, "arrays": shapes}))
        try:
            scratch.rename(entry)
        except OSError:
            if _load(entry, entry.name) is None:  # what is there is broken, not a rival's
                shutil.rmtree(entry, ignore_errors=True)
                scratch.rename(entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load(entry: Path, key: str) -> Data | None:
    """Map an entry; None where there is none that is whole."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]}
        if any(list(arrays[name].shape) != shape for name, shape in meta["arrays"].items()):
            return None
    except (OSError, ValueError, KeyError):
        return None

    def split(name: str) -> Split | None:
        if f"{name}.ids" not in arrays:
            return None
        parts = {part: arrays.get(f"{name}.{part}") for part in ("ids", "segments", "offsets", "labels")}
        return Split(**parts)  # type: ignore[arg-type]

    train, validation = split("train"), split("validation")
    assert train is not None
    assert validation is not None
    return Data(
        train=train,
        validation=validation,
        test=split("test"),
        label_names=tuple(meta["label_names"]),
        pad_id=meta["pad_id"],
        fingerprint=key,
    )
