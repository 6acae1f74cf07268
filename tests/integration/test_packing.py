"""Trials that share a GPU, on a Ray cluster that believes to have one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize("share", ["0.25", "auto"])
def test_two_gangs_run_at_a_time_on_one_gpu(share: str, tmp_path: Path) -> None:
    """`auto` by the memory that the GPU says it has: without that it would be a whole one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.packed", str(tmp_path), share],
        cwd=REPOSITORY,
        env=os.environ | {"THAW_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    spans = found["spans"]
    assert [what for what, _ in spans] == ["taken", "taken", "ended", "ended"], found["log"]
    assert spans[0][1] != spans[1][1]  # each in a worker of its own
