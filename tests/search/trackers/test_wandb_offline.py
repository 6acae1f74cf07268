from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.trackers import Run, WandbConfig, WandbTracker

ReadRun = Callable[[Path], dict[str, Any]]


def run(directory: Path, trial: int = 3, **rest: Any) -> Run:
    config = {"training": {"learning_rate": 1e-3, "unfreezing": {"schedule": "top"}}, "seed": 7}
    return Run(sweep="quick start", sweep_id="s1", trial=trial, directory=directory, config=config, **rest)


def test_a_run_holds_config_history_summary_group_and_id(
    home: Path, tmp_path: Path, read_run: ReadRun, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (sys.exit, sys.excepthook, dict(os.environ))
    tracker = WandbTracker(WandbConfig(project="p", mode="offline", tags=["cpu"]))
    tracker.start(run(tmp_path))
    for step in range(1, 6):
        tracker.log(3, {"train/loss": 1 / step, "thawed": "head"}, examples=32 * step)
    tracker.log(3, {"eval/accuracy": 0.8, "eval/loss": math.nan}, examples=160)
    tracker.summarize(3, {"best/eval/accuracy": 0.8})
    tracker.finish(3, "complete")
    tracker.close(10)

    assert tracker.warnings == []
    assert tracker.modes == {3: "offline"}
    assert tracker.locations() == [str(tmp_path / "wandb")]
    written = read_run(Path(tracker.directories[3]))
    assert written["id"] == run(tmp_path).id
    assert written["id"].startswith("quick-start-")
    assert (written["name"], written["group"]) == ("quick start-3", "quick start")
    assert (written["project"], written["tags"]) == ("p", ["cpu"])
    assert {name: value for name, value in written["config"].items() if name != "_wandb"} == run(
        tmp_path
    ).config
    losses = [(row["examples"], row["train/loss"]) for row in written["history"] if "train/loss" in row]
    assert losses == [(32 * step, 1 / step) for step in range(1, 6)]
    assert written["history"][-1]["eval/accuracy"] == 0.8
    assert written["history"][0]["thawed"] == "head"
    assert ("*", "examples") in written["metrics"]
    assert written["summary"]["best/eval/accuracy"] == 0.8
    assert written["summary"]["state"] == "complete"
    assert written["exit_code"] == 0
    assert capfd.readouterr() == ("", "")
    assert (sys.exit, sys.excepthook, dict(os.environ)) == before


def test_a_failed_trial_is_a_failed_run_and_an_open_one_is_interrupted(
    home: Path, tmp_path: Path, read_run: ReadRun
) -> None:
    tracker = WandbTracker(WandbConfig(mode="offline"))
    for trial in (0, 1):
        tracker.start(run(tmp_path, trial))
    tracker.finish(0, "failed")
    tracker.close(10)
    written = [read_run(Path(tracker.directories[trial])) for trial in (0, 1)]
    assert [one["exit_code"] for one in written] == [1, 255]
    assert [one["summary"]["state"] for one in written] == ["failed", "interrupted"]


def test_a_resumed_trial_goes_on_in_the_same_run_without_duplicates(
    home: Path, tmp_path: Path, read_run: ReadRun
) -> None:
    directories = []
    for resumed, first, last in ((False, 1, 5), (True, 3, 7)):  # back to a checkpoint at step 2
        tracker = WandbTracker(WandbConfig(mode="offline"))
        tracker.start(run(tmp_path, resumed=resumed))
        for step in range(first, last + 1):
            tracker.log(3, {"train/loss": 1 / step}, examples=step)
        if resumed:
            tracker.log(3, {"eval/loss": 0.5}, examples=5)  # new, though that step is not
        tracker.close(10)
        directories.append(Path(tracker.directories[3]))
    first_run, second_run = map(read_run, directories)
    assert directories[0] != directories[1]
    assert first_run["id"] == second_run["id"]
    rows = [*first_run["history"], *second_run["history"]]
    assert [row["examples"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["examples"] for row in rows if "eval/loss" in row] == [5]


def test_a_paused_trial_can_be_started_again_in_the_same_process(
    home: Path, tmp_path: Path, read_run: ReadRun
) -> None:
    tracker = WandbTracker(WandbConfig(mode="offline"))
    directories = []
    for resumed, step in ((False, 1), (True, 2)):
        tracker.start(run(tmp_path, resumed=resumed))
        tracker.log(3, {"train/loss": 1 / step}, examples=step)
        tracker.finish(3, "paused" if step == 1 else "complete")
    tracker.close(10)
    assert tracker.warnings == []
    directories = sorted((tmp_path / "wandb").glob("offline-run-*"))
    steps = [[row["examples"] for row in read_run(path)["history"]] for path in directories]
    assert sorted(steps) == [[1], [2]]


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_key_runs_are_offline(home: Path, tmp_path: Path, mode: Any) -> None:
    tracker = WandbTracker(WandbConfig(mode=mode))
    tracker.start(run(tmp_path))
    tracker.close(10)
    assert tracker.modes == {3: "offline"}
    assert len(tracker.warnings) == (mode == "online")


def test_disabled_starts_and_writes_nothing(home: Path, tmp_path: Path) -> None:
    tracker = WandbTracker(WandbConfig(mode="disabled"))
    tracker.start(run(tmp_path / "sweep"))
    tracker.log(3, {"train/loss": 1.0}, examples=1)
    tracker.close(10)
    assert tracker.locations() == []
    assert not (tmp_path / "sweep").exists()
