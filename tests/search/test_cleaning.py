from pathlib import Path

import pytest
import torch

from search.commands.cleaning import gc
from training.prefix.entries import Draft, Shape, open_entry
from training.prefix.store import roots_of


def test_gc_frees_the_prefix_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    shape = Shape(tokens=1000, hidden=500, stacks=1, dtype=torch.float32)
    for root in roots_of(tmp_path).values():
        Draft(root, "key", shape).commit(seconds=1.0, rows=8, described={})
    count = len(roots_of(tmp_path))
    reader = open_entry(tmp_path / "prefix", "key", shape)
    assert reader is not None
    gc()
    assert (
        capsys.readouterr().out
        == f"freed {2.0 * (count - 1):.1f} MB of the prefix store; 2.0 MB are in use\n"
    )
    reader.close()
    gc()
    assert capsys.readouterr().out == "freed 2.0 MB of the prefix store\n"
    assert not any(root.exists() for root in roots_of(tmp_path).values())
    (tmp_path / "data").mkdir()
    gc()
    assert capsys.readouterr().out == "freed 0.0 MB of the prefix store\n"
