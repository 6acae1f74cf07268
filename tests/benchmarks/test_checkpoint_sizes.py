"""Bytes of a checkpoint are in proportion to what thawed, on a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.checkpoint_sizes import SCHEDULES, sizes


@pytest.mark.slow
def test_a_checkpoint_is_as_large_as_what_thawed(tmp_path: Path) -> None:
    chosen = ("head", "top, depth 1", "full")
    found = sizes({name: SCHEDULES[name] for name in chosen}, tmp_path)
    assert found["head"].total < 2.5e6
    assert found["full"].total == pytest.approx(272e6, rel=0.01)
    # One block of MiniLM has 1.77 million parameters: a weight and two moments of 4 bytes each.
    block = 12 * 1_774_464
    assert found["top, depth 1"].total - found["head"].total == pytest.approx(block, rel=0.001)
