"""What is read from nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.gpus import smallest, smallest_here


def test_the_smallest_counts() -> None:
    assert smallest("81559\n24564\n81559\n") == 24564 * 2**20
    assert smallest("[N/A]\n") is None
    assert smallest("") is None


def test_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = --query-gpu=memory.total ] && echo 15360\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert smallest_here() == 15360 * 2**20
    tool.unlink()
    assert smallest_here() is None
