"""What tests of the frozen prefix share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.config import PrefixStoreConfig, TrialConfig
from training.prefix import Frozen, clear
from training.prefix.store import roots_of
from training.workspace import load

CPU = torch.device("cpu")
FP32 = torch.float32


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A cache of the test's own, with its part of the memory."""
    yield tmp_path / "cache"
    clear(tmp_path / "cache")
    assert not any(root.exists() and any(root.iterdir()) for root in roots_of(tmp_path / "cache").values())


def frozen_of(config: TrialConfig, cache: Path, **store: Any) -> Frozen:
    return load(config, cache, PrefixStoreConfig(**store)).frozen


def computed(frozen: Frozen, boundary: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    """All states of the training examples, recomputed."""
    recipe = frozen.recipe("train", boundary, dtype, CPU)
    offsets = frozen.data.train.offsets
    whole = torch.zeros(int(offsets[-1]), 10, dtype=dtype)
    for wanted, (states,) in recipe.pieces(np.arange(len(frozen.data.train))):
        at = 0
        for index in wanted:
            rows = int(offsets[index + 1] - offsets[index])
            whole[offsets[index] : offsets[index + 1]] = states[at : at + rows]
            at += rows
    return whole


def shelved(cache: Path) -> list[Path]:
    """The entries in memory and on disk."""
    roots = [root for root in roots_of(cache).values() if root.is_dir()]
    return [p for root in roots for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
