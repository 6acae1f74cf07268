"""What every tracker of the table keeps to."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from search.trackers import TRACKERS, Composite, NoTracker, Run, Tracker

FACTORIES: dict[str, Callable[[], Tracker]] = {
    **{name: partial(factory, None) for name, factory in TRACKERS.items()},
    "none": NoTracker,
    "composite": lambda: Composite([TRACKERS["jsonl"](None), NoTracker()]),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_tracker_returns_at_once_prints_nothing_and_stays_in_its_directory(
    name: str, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    directory = tmp_path / "sweep"
    tracker = FACTORIES[name]()
    assert isinstance(tracker, Tracker)
    for resumed in (False, True):
        begun = time.monotonic()
        for trial in (0, 1):
            run = Run(
                sweep="s",
                sweep_id="1",
                trial=trial,
                directory=directory,
                config={"p": Path("x")},
                resumed=resumed,
            )
            tracker.start(run)
        for step in range(500):
            for trial in (0, 1):
                tracker.log(
                    trial, {"train/loss": 1.0, "thawed": "head", "eval/loss": float("nan")}, examples=step
                )
        tracker.summarize(0, {"best/eval/loss": 0.5, "best/epoch": None})
        tracker.finish(0, "paused")
        assert time.monotonic() - begun < 0.5
    tracker.close(10)
    tracker.close(10)
    assert list(tracker.warnings) == []
    assert all(Path(location).exists() for location in tracker.locations())
    assert bool(tracker.locations()) == (name != "none")
    assert capfd.readouterr() == ("", "")
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in home.iterdir() if path.name != ".cache"] == []  # wandb's own debug log
