"""What is read from nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.gpus import Gpu, read, smallest, smallest_here


def test_the_smallest_counts() -> None:
    assert smallest(read("H100, 4, 81559\nL4, 0, 24564\nH100, 9, 81559\n")) == 24564 * 2**20
    assert smallest(read("")) is None


def test_one_that_does_not_say_is_there_all_the_same() -> None:
    found = read("NVIDIA GB10, [N/A], [N/A]\n")
    assert found == (Gpu(name="NVIDIA GB10", used_bytes=0, total_bytes=0),)
    assert smallest(found) is None


def test_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\n[ "$1" = --query-gpu=name,memory.used,memory.total ] && echo "T4, 3, 15360"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert smallest_here() == 15360 * 2**20
    tool.unlink()
    assert smallest_here() is None
