"""Mistakes on the command line, and what a real process makes of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cli import Thaw, write_sweep
from tests.conftest import REPOSITORY
from tests.integration.refusals import files, refused


def test_a_source_that_is_not_there(thaw: Thaw, tmp_path: Path) -> None:
    refused(thaw("run", "quickstrat"), "quickstrat: no such file or bundled sweep; did you mean quickstart?")
    refused(thaw("run", tmp_path), f"{tmp_path}: must be a YAML file, got a directory")
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["rum", "quickstart"], "rum"),
        (["run"], "SWEEP"),
        (["run", "quickstart", "--sett", "a=1"], "--sett"),
        (["export", "tiny"], "--output"),
        (["export", "tiny", "-o", "x", "--trial", "best"], "--trial"),
    ],
)
def test_a_wrong_command_line(thaw: Thaw, tmp_path: Path, args: list[str], named: str) -> None:
    outcome = thaw(*args)
    assert outcome.code == 2
    assert outcome.out == ""
    assert named in outcome.err
    assert "Traceback" not in outcome.err
    assert files(tmp_path) == {}


def test_an_error_of_the_machine_is_one_line_and_another_exit_code(
    thaw: Thaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device", "/disk/file")

    monkeypatch.setattr("search.loading.load", full)
    outcome = thaw("run", "quickstart")
    assert (outcome.code, outcome.err) == (1, "error: [Errno 28] No space left on device: '/disk/file'\n")


@pytest.fixture
def processes(tmp_path: Path) -> dict[str, str]:
    """The environment of real processes; where Ray would put its files is theirs alone."""
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "RAY_TMPDIR": str(tmp_path / "ray"),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.trails=3"], "--set search.trails=3: unknown key; did you mean search.trials?"),
        (["resources.workers=100000"], "resources: a trial needs 100000 workers with 1 CPU each, and the "),
    ],
    ids=["at load", "after all checks"],
)
def test_a_real_process(
    processes: dict[str, str], tmp_path: Path, overrides: list[str], message: str
) -> None:
    sweep = write_sweep(tmp_path)
    before = files(tmp_path)
    sets = [part for override in overrides for part in ("--set", override)]
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), "run", str(sweep), *sets],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=processes,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {message}")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert files(tmp_path) == before  # neither ./runs nor any of Ray's files


def test_debug_shows_the_traceback(processes: dict[str, str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), "run", "nowhere.yaml", "--debug"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=processes,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):")
    assert ended.stderr.rstrip().endswith(
        "nowhere.yaml: no such file or bundled sweep; bundled sweeps: quickstart"
    )
