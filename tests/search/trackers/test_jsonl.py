from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from search.trackers import JsonlTracker, Run


def run(directory: Path, trial: int = 0, **rest: Any) -> Run:
    return Run(sweep="s", sweep_id="1", trial=trial, directory=directory, config={"lr": 1e-3}, **rest)


def events(directory: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not strict JSON")

    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_every_event_is_a_line_at_once(tmp_path: Path) -> None:
    tracker = JsonlTracker()
    tracker.start(run(tmp_path, 4))
    tracker.log(4, {"train/loss": 0.5, "thawed": "head"}, examples=32)
    tracker.summarize(4, {"best/eval/accuracy": 0.8})
    tracker.finish(4, "pruned")
    found = events(tmp_path)  # before close: flushed line by line
    assert [event["kind"] for event in found] == ["start", "log", "summary", "finish"]
    assert {event["trial"] for event in found} == {4}
    assert all(event["time"] > 1.6e9 for event in found)
    assert found[0]["config"] == {"lr": 1e-3}
    assert found[0]["id"] == run(tmp_path, 4).id
    assert (found[1]["examples"], found[1]["metrics"]) == (32, {"train/loss": 0.5, "thawed": "head"})
    assert found[2]["values"] == {"best/eval/accuracy": 0.8}
    assert found[3]["state"] == "pruned"
    assert tracker.locations() == [str(tmp_path / "metrics.jsonl")]


def test_numbers_that_json_lacks_become_words(tmp_path: Path) -> None:
    tracker = JsonlTracker()
    tracker.start(run(tmp_path))
    values: dict[str, Any] = {
        "a": math.nan,
        "b": math.inf,
        "c": -math.inf,
        "d": np.float32(0.5),
        "e": np.int64(3),
    }
    tracker.log(0, values, examples=1)
    assert events(tmp_path)[1]["metrics"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 0.5, "e": 3}


def test_a_resumed_trial_appends_what_is_new_even_after_a_torn_line(tmp_path: Path) -> None:
    for resumed, steps in ((False, (1, 2, 3)), (True, (2, 3, 4))):
        tracker = JsonlTracker()
        for trial in (0, 1):
            tracker.start(run(tmp_path, trial, resumed=resumed))
            for step in steps:
                tracker.log(trial, {"train/loss": 1 / step}, examples=step)
        tracker.log(0, {"eval/loss": 0.1}, examples=2 + resumed)
        tracker.close(1)
        if not resumed:
            with (tmp_path / "metrics.jsonl").open("a") as file:
                file.write('{"time": 1, "tri')  # the driver was killed here
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines.remove('{"time": 1, "tri')
    logged = [event for event in map(json.loads, lines) if event["kind"] == "log"]
    for trial in (0, 1):
        losses = [e["examples"] for e in logged if e["trial"] == trial and "train/loss" in e["metrics"]]
        assert losses == [1, 2, 3, 4]
    assert [event["examples"] for event in logged if "eval/loss" in event["metrics"]] == [2, 3]


def test_what_is_no_event_does_not_keep_a_trial_from_going_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('[]\n3\n{"kind": "log"}\n')
    tracker = JsonlTracker()
    tracker.start(run(tmp_path, resumed=True))
    tracker.log(0, {"loss": 0.5}, examples=1)
    tracker.close(1.0)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["metrics"] == {"loss": 0.5}


def test_what_cannot_be_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    tracker = JsonlTracker()
    tracker.start(run(tmp_path))
    tracker.log(0, {"loss": 1.0}, examples=1)
    tracker.close(1.0)
    assert "cannot be written" in tracker.warnings[0]
    path.unlink()
    tracker.log(0, {"loss": 0.5}, examples=2)
    tracker.close(1.0)
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == ["start", "log", "log"]
