"""On a GPU: the same bits stored and recomputed, and no frozen block on the device that does not compute."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.conftest import MakeTrial
from tests.training.trials import batch_of
from training.config import PrefixStoreConfig
from training.engine import compute_dtype
from training.prefix import clear
from training.workspace import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stored_and_recomputed_are_the_same(precision: str, make_trial: MakeTrial, tmp_path: Path) -> None:
    device, dtype = torch.device("cuda", 0), compute_dtype(precision)
    kept = load(make_trial(), tmp_path, PrefixStoreConfig()).frozen.feed(2, dtype, device)
    plain = load(make_trial(), tmp_path, PrefixStoreConfig(mode="recompute")).frozen.feed(2, dtype, device)
    draw = np.random.default_rng(0)
    for _ in range(10):
        rows = draw.choice(44, 16, replace=False)
        stored, _ = batch_of(kept, "train", rows)
        again, _ = batch_of(plain, "train", rows)
        assert kept.stored("train")
        assert not plain.stored("train")
        assert stored["states"][0].device.type == "cuda"
        assert torch.equal(stored["states"][0], again["states"][0])
    kept.close()
    clear(tmp_path)


def held() -> int:
    """Bytes in use on the device."""
    gc.collect()
    return torch.cuda.memory_allocated()


def test_frozen_blocks_leave_the_device(make_trial: MakeTrial, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    rows = np.arange(8)
    for mode in ("store", "recompute"):
        frozen = load(make_trial(), tmp_path, PrefixStoreConfig(mode=mode)).frozen  # type: ignore[arg-type]
        first = frozen.feed(3, torch.float32, device)
        batch_of(first, "train", rows)  # cuBLAS's workspaces stay
        first.close()
        before = held()
        feed = frozen.feed(2, torch.float32, device)
        for name in ("train", "validation"):
            batch_of(feed, name, rows)
        taken = held() - before
        # An allocation is a multiple of 512 bytes, which counts for tensors as small as these.
        parameters = frozen.segment(None, 2, torch.float32).parameters()
        weights = sum(-(-parameter.nbytes // 512) * 512 for parameter in parameters)
        print(f"{mode}: {taken} bytes, of weights {weights}")
        # For both splits once.
        assert taken < 4096 if mode == "store" else weights <= taken < 1.5 * weights
        feed.close()
        assert held() - before < 4096
        assert {p.device.type for p in frozen.blocks.model.parameters()} == {"cpu"}
    clear(tmp_path)
