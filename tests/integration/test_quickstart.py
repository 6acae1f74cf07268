"""The README's first command, as a user runs it."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search.study import TrialState
from search.sweep import find


def switches_s(events: list[dict[str, object]]) -> list[float]:
    """From the end of a trial to the first optimizer step of the one that follows on its gang."""
    ends = [float(str(event["time"])) for event in events if event["kind"] == "finish"]
    begun = {event["trial"]: float(str(event["time"])) for event in events if event["kind"] == "start"}
    found = []
    for trial, start in begun.items():
        before = [end for end in ends if end <= start]
        steps = [
            float(str(event["time"]))
            for event in events
            if event["kind"] == "log" and event["trial"] == trial and "train/loss" in dict(event["metrics"])  # type: ignore[call-overload]
        ]
        if before:
            found.append(min(steps) - max(before))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_quickstart_finds_a_good_model(tmp_path: Path, cache: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "launch", "run", "quickstart", "--storage", str(tmp_path)],
        env={**os.environ, "THAW_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, f"{time.monotonic() - began:.0f} s")
    assert done.returncode == 0, done.stderr
    study = find("quickstart", tmp_path).read()
    trials = study.trials()
    assert len(trials) >= 12
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    best = study.best()
    assert best is not None
    assert float(best.value(study.metric, study.goal) or 0) >= 0.82
    assert (tmp_path / "quickstart" / "best" / "model.safetensors").exists()
    lines = (tmp_path / "quickstart" / "metrics.jsonl").read_text().splitlines()
    assert statistics.median(switches_s([json.loads(line) for line in lines])) < 1.0
