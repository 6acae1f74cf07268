"""The benches of clusters, once each and small: each in a process of its own, with a cluster of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


def bench(name: str, *options: str, out: Path, cache: Path) -> dict[str, Any]:
    """What a bench found."""
    ended = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", *options, "--out", str(out)],
        cwd=REPOSITORY,
        env={**os.environ, "THAW_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return dict(json.loads(out.read_text()))


def test_nodes_come_when_gangs_wait_and_go_when_they_are_idle(tmp_path: Path, cache: Path) -> None:
    found = bench("autoscaling", out=tmp_path / "autoscaling.json", cache=cache)
    code, said = found["refused"]
    assert code == 2
    assert "resources: a trial needs 1 worker with 2 CPUs" in said
    assert found["code"] == 0, found["log"]
    # From none to one for each gang, of the six that there could be, and back to none.
    assert found["course"][0] == 0
    assert 2 <= found["most"] <= 3
    assert found["course"][-1] == 0


def test_a_node_is_lost_and_another_taken_away_with_notice(tmp_path: Path, cache: Path) -> None:
    found = bench("faults", "--faults", "raylet,drain", "--times", "1", out=tmp_path / "f.json", cache=cache)
    [run] = found["runs"]
    assert run["complaints"] == []
    assert sorted(run["faults"]) == ["drain", "raylet"]
    assert len(run["victims"]) == 2
    assert any(run["repeated_examples"])  # a trial went on from a checkpoint


def test_a_gang_that_comes_back_smaller_and_grows_trains_the_same_and_spot_holds_no_owner(
    tmp_path: Path, cache: Path
) -> None:
    """Two workers on two spot nodes, of which one is lost; after a while there is another."""
    gang = ("--workers", "2", "--fewest", "1", "--spare", "0", "--spot")
    out = tmp_path / "absence.json"
    found = bench("faults", "--faults", "absence", "--times", "1", *gang, out=out, cache=cache)
    [run] = found["runs"]
    assert run["complaints"] == []
    assert max(found["calm"]["sizes"]) == 2
    course = run["sizes"]
    assert 2 in course[course.index(1, course.index(2)) :]  # it was as large, then smaller, and is again
    assert run["owners_on"] == [""]  # the head, which has no label
    assert any(run["repeated_examples"])  # a trial went on from a checkpoint
