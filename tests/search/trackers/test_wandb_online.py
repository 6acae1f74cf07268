from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.trackers import Run, WandbConfig, WandbTracker


def run(directory: Path, trial: int, **rest: Any) -> Run:
    config = {"training": {"learning_rate": 10.0**-trial}, "seed": trial}
    return Run(sweep="quickstart", sweep_id="s1", trial=trial, directory=directory, config=config, **rest)


def test_rows_reach_the_right_runs_and_resume_adds_to_them(
    server: Any, key: str, tmp_path: Path, processes: Callable[[], dict[int, str]]
) -> None:
    for resumed in (False, True):
        tracker = WandbTracker(WandbConfig(project="p"))
        for trial in (0, 1):
            tracker.start(run(tmp_path, trial, resumed=resumed))
            for step in (2, 3, 4) if resumed else (1, 2, 3):
                tracker.log(trial, {"train/loss": trial + 1 / step}, examples=32 * step)
            tracker.summarize(trial, {"best/eval/accuracy": 0.8 + resumed / 10})
            tracker.finish(trial, "complete" if resumed else "paused")
        tracker.close(15)
        assert tracker.warnings == []
        assert tracker.locations() == [f"{server.url}/someone/p/groups/quickstart/workspace"]
    for trial in (0, 1):
        run_id = run(tmp_path, trial).id
        rows = [(row["_step"], row["examples"], row["train/loss"]) for row in server.history(run_id)]
        assert rows == [(step - 1, 32 * step, trial + 1 / step) for step in (1, 2, 3, 4)]
        assert server.runs[run_id]["groupName"] == "quickstart"
        assert server.runs[run_id]["displayName"] == f"quickstart-{trial}"
        assert server.config(run_id) == run(tmp_path, trial).config
        assert server.summaries[run_id]["best/eval/accuracy"] == 0.9
        assert server.summaries[run_id]["state"] == "complete"
        assert server.exit_codes[run_id] == 0
        assert tracker.urls[trial] == f"{server.url}/someone/p/runs/{run_id}"
    assert not [path for path in server.requests if "otel" in path]  # no reports about the machine
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if key.encode() in path.read_bytes()]
    assert processes() == {}


@pytest.mark.parametrize("where", ["netrc", "file"])
def test_a_key_that_is_not_in_the_environment_is_found(
    server: Any, key: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    settings = WandbConfig()
    if where == "netrc":
        host = server.url.removeprefix("http://")
        (home / "netrc").write_text(f"machine {host}\n  login user\n  password {key}\n")
        (home / "netrc").chmod(0o600)
    else:
        (home / "key").write_text(f"{key}\n")
        settings = WandbConfig(api_key_file=str(home / "key"))
    tracker = WandbTracker(settings)
    tracker.start(run(tmp_path / "sweep", 0))
    tracker.close(15)
    assert tracker.modes == {0: "online"}
    assert tracker.warnings == []
    files = [path for path in (tmp_path / "sweep").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if key.encode() in path.read_bytes()]


@pytest.mark.slow
def test_rows_are_streamed_while_the_trial_runs(server: Any, tmp_path: Path) -> None:
    tracker = WandbTracker()
    tracker.start(run(tmp_path, 0))
    deadline = time.monotonic() + 20
    step = 0
    while not server.history(run(tmp_path, 0).id) and time.monotonic() < deadline:
        tracker.log(0, {"train/loss": 1.0}, examples=(step := step + 1))
        time.sleep(0.1)
    assert server.history(run(tmp_path, 0).id)
    tracker.close(15)


def test_a_server_that_hangs_later_leaves_every_row_on_disk(
    server: Any, tmp_path: Path, read_run: Callable[[Path], dict[str, Any]]
) -> None:
    tracker = WandbTracker()
    tracker.start(run(tmp_path, 0))
    tracker.log(0, {"train/loss": 1.0}, examples=1)
    deadline = time.monotonic() + 10
    while 0 not in tracker.modes and time.monotonic() < deadline:
        time.sleep(0.02)
    assert tracker.modes == {0: "online"}
    server.hung.set()
    for step in range(2, 202):
        tracker.log(0, {"train/loss": 1.0}, examples=step)
    tracker.finish(0, "complete")
    begun = time.monotonic()
    tracker.close(3)
    assert time.monotonic() - begun < 4
    assert len(tracker.warnings) == 1
    assert "wandb sync" in tracker.warnings[0]
    rows = read_run(Path(tracker.directories[0]))["history"]
    assert [row["examples"] for row in rows] == list(range(1, 202))


def test_a_run_that_loses_its_server_goes_on_offline(
    server: Any, tmp_path: Path, read_run: Callable[[Path], dict[str, Any]]
) -> None:
    tracker = WandbTracker(init_timeout_s=1)
    tracker.start(run(tmp_path, 0))
    for step in range(100):
        tracker.log(0, {"train/loss": 1.0}, examples=step)
    deadline = time.monotonic() + 10
    while 0 not in tracker.modes and time.monotonic() < deadline:
        time.sleep(0.02)
    first = Path(tracker.directories[0])
    server.hung.set()
    tracker.start(run(tmp_path, 1))  # which finds out
    while 1 not in tracker.modes and time.monotonic() < deadline:
        time.sleep(0.02)
    for step in range(100, 200):
        tracker.log(0, {"train/loss": 1.0}, examples=step)
    tracker.finish(0, "complete")
    tracker.close(10)
    assert tracker.modes == {0: "offline", 1: "offline"}
    assert len(tracker.warnings) == 2
    assert f"wandb sync --include-online {first}" in tracker.warnings[1]
    runs = [read_run(first), read_run(Path(tracker.directories[0]))]
    assert runs[0]["id"] == runs[1]["id"]
    assert [row["examples"] for one in runs for row in one["history"]] == list(range(200))


@pytest.mark.slow
def test_what_was_written_offline_can_be_synced(server: Any, tmp_path: Path) -> None:
    for resumed in (False, True):
        tracker = WandbTracker(WandbConfig(mode="offline"))
        tracker.start(run(tmp_path, 0, resumed=resumed))
        for step in (2, 3, 4) if resumed else (1, 2, 3):
            tracker.log(0, {"train/loss": 1 / step}, examples=step)
        tracker.finish(0, "complete" if resumed else "paused")
        tracker.close(15)
        time.sleep(1.1)  # directories are named by the second, and synced in that order
    assert server.requests == []
    directories = sorted(str(path) for path in (tmp_path / "wandb").glob("offline-run-*"))
    subprocess.run([sys.executable, "-m", "wandb", "sync", *directories], check=True, capture_output=True)
    rows = server.history(run(tmp_path, 0).id)
    assert [(row["_step"], row["examples"]) for row in rows] == [(0, 1), (1, 2), (2, 3), (3, 4)]
