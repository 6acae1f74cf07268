"""The benches as commands, each as small as it goes: what they print is what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY


def run(name: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """What a bench found, and its table."""
    told = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    found, end = json.JSONDecoder().raw_decode(told.stdout[told.stdout.index("{") :])
    assert found["machine"]["cores"] >= 1
    return found, told.stdout[told.stdout.index("{") + end :]


@pytest.mark.slow
def test_where_time_goes(tmp_path: Path) -> None:
    small = ("--examples", "64", "--epochs", "1", "--trials", "head", "full", "--out", str(tmp_path / "out"))
    found, table = run("where", *small)
    seconds = found["seconds"]
    assert set(seconds) == {"head", "full"}
    assert seconds["full"]["forward and backward"] > seconds["head"]["forward and backward"] > 0
    assert seconds["head"]["prefix store"] > 0
    assert "forward and backward" in table
    assert json.loads((tmp_path / "out").read_text()) == found


@pytest.mark.slow
def test_a_step_against_the_rivals() -> None:
    found, table = run(
        "step_speed", "--examples", "64", "--batch-size", "8", "--depths", "0", "6", "--repeats", "1"
    )
    head, full = found["rows"]
    assert head["trainer_over_stored"] > 5
    assert head["seconds"]["recomputed"] > head["seconds"]["stored"]
    assert head["target"] == 40
    assert full["thawed_blocks"] == 6
    assert "T/stored" in table


@pytest.mark.slow
def test_a_switch_against_a_start() -> None:
    found, table = run("switch", "--trials", "2", "--rival", "1")
    assert found["thaw warm"]["starts"] == 2
    assert 0 < found["thaw warm"]["median_s"] < found["thaw cold"]["seconds"]
    assert found["ratio"]["warm"] > 1
    assert "target: a warm start in less than 0.3 s" in table


@pytest.mark.slow
def test_what_a_driver_costs() -> None:
    found, table = run("scale", "--trials", "10", "--gangs", "1", "--long", "--raylets", "1")
    one, several = found["rows"]  # results of a trial
    assert one["results_per_s"] == pytest.approx(one["trials_per_s"], rel=0.5)
    assert several["results_per_s"] > 3 * several["trials_per_s"] > 0
    assert sum(window["driver_cpu_s"] for window in found["windows"]) > 0
    assert "200 gangs" in table
