"""W&B slow, down or absent: nothing waits, nothing is lost, nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.trackers import Run, WandbConfig, WandbTracker

ReadRun = Callable[[Path], dict[str, Any]]
Processes = Callable[[], dict[int, str]]


@pytest.fixture
def silent_server(key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield


@pytest.fixture
def no_server(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where connections are refused."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")


def run(directory: Path, trial: int = 0) -> Run:
    return Run(sweep="quickstart", sweep_id="s1", trial=trial, directory=directory, config={"seed": 1})


def gone(processes: Processes, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes()


@pytest.mark.parametrize(
    ("trouble", "init_timeout_s"),
    [
        pytest.param("silent_server", 15.0, id="still waiting at the end"),
        pytest.param("no_server", 1.0, id="given up before"),
    ],
)
def test_nothing_waits_and_everything_is_written_offline(
    trouble: str,
    init_timeout_s: float,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    read_run: ReadRun,
    processes: Processes,
) -> None:
    request.getfixturevalue(trouble)
    tracker = WandbTracker(init_timeout_s=init_timeout_s)
    begun = time.monotonic()
    tracker.start(run(tmp_path))
    for step in range(1000):
        tracker.log(0, {"train/loss": 1 / (step + 1), "learning_rate/head": 1e-3}, examples=step)
    tracker.finish(0, "complete")
    assert time.monotonic() - begun < 0.1
    begun = time.monotonic()
    tracker.close(4)
    assert time.monotonic() - begun < 4.5
    assert tracker.locations() == [str(tmp_path / "wandb")]
    assert "cannot be reached" in tracker.warnings[0]
    assert gone(processes, 6)
    (directory,) = (tmp_path / "wandb").glob("offline-run-*")
    written = read_run(directory)
    assert [row["examples"] for row in written["history"]] == list(range(1000))
    assert written["config"]["seed"] == 1


def test_close_gives_up_in_time_even_if_nothing_was_done(
    silent_server: None, tmp_path: Path, processes: Processes
) -> None:
    tracker = WandbTracker()
    tracker.start(run(tmp_path))
    begun = time.monotonic()
    tracker.close(0.1)
    assert time.monotonic() - begun < 1
    assert "did not finish within 0.1 s" in tracker.warnings[-1]
    assert gone(processes, 6)


def test_after_a_failure_further_runs_do_not_wait_for_the_server(silent_server: None, tmp_path: Path) -> None:
    tracker = WandbTracker(init_timeout_s=0.5)
    for trial in range(4):
        tracker.start(run(tmp_path, trial))
    deadline = time.monotonic() + 10
    while len(tracker.modes) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(tracker.modes.values()) == {"offline"}
    assert len(tracker.warnings) == 1
    assert time.monotonic() < deadline - 5
    tracker.close(5)


def test_a_service_that_dies_is_started_again(
    home: Path, tmp_path: Path, read_run: ReadRun, processes: Processes
) -> None:
    tracker = WandbTracker(WandbConfig(mode="offline"))
    tracker.start(run(tmp_path))
    tracker.log(0, {"train/loss": 1.0}, examples=1)
    deadline = time.monotonic() + 10
    while 0 not in tracker.modes and time.monotonic() < deadline:
        time.sleep(0.02)
    (core,) = (process for process, command in processes().items() if "wandb-core" in command)
    os.kill(core, signal.SIGKILL)
    time.sleep(0.1)
    tracker.log(0, {"train/loss": 1.0}, examples=2)
    tracker.finish(0, "complete")
    tracker.close(10)
    assert any("service ended" in warning for warning in tracker.warnings)
    last = read_run(Path(tracker.directories[0]))
    assert [row["examples"] for row in last["history"]] == [2]
    assert last["summary"]["state"] == "complete"


def test_without_wandb_there_is_a_warning_and_no_failure(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text("raise ImportError('No module named wandb')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    tracker = WandbTracker()
    tracker.start(run(tmp_path))
    tracker.log(0, {"train/loss": 1.0}, examples=1)
    tracker.finish(0, "complete")
    tracker.close(10)
    assert len(tracker.warnings) == 1
    assert "W&B is off: No module named wandb" in tracker.warnings[0]
    assert tracker.locations() == []


DRIVER = """
import sys, time
from pathlib import Path
from search.trackers import Run, WandbTracker
tracker = WandbTracker()
tracker.start(Run(sweep="quickstart", sweep_id="s1", trial=0, directory=Path(sys.argv[1])))
for step in range(100):
    tracker.log(0, {"train/loss": 1.0}, examples=step)
if sys.argv[2] == "stay":
    while 0 not in tracker.modes:
        time.sleep(0.02)
    print("ready", flush=True)
    time.sleep(60)
time.sleep(0.5)
print("end", time.monotonic(), flush=True)
"""


def test_a_driver_that_never_closes_exits_at_once(
    silent_server: None, tmp_path: Path, processes: Processes
) -> None:
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), "leave"], capture_output=True, text=True, check=True
    )
    after_s = time.monotonic() - float(driver.stdout.split()[1])
    assert after_s < 1
    assert driver.stderr == ""
    for process in processes():  # would end by themselves, in some seconds
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_a_driver_that_never_closes_leaves_its_rows_and_no_process(
    silent_server: None, tmp_path: Path, processes: Processes, read_run: ReadRun
) -> None:
    subprocess.run([sys.executable, "-c", DRIVER, str(tmp_path), "leave"], capture_output=True, check=True)
    assert gone(processes, 10)
    (directory,) = (tmp_path / "wandb").glob("offline-run-*")
    assert len(read_run(directory)["history"]) == 100


def test_a_killed_driver_leaves_its_rows_and_no_process(
    home: Path, tmp_path: Path, read_run: ReadRun, processes: Processes
) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), "stay"], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    driver.kill()
    driver.wait()
    assert gone(processes, 10)
    (directory,) = (tmp_path / "wandb").glob("offline-run-*")
    written = read_run(directory)
    assert [row["examples"] for row in written["history"]] == list(range(100))
    assert written["summary"]["state"] == "interrupted"
