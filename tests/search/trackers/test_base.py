from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from search.trackers import Composite, JsonlTracker, NoTracker, Run, Seen, Tracker, Value, WandbConfig, build


def run(directory: Path, **rest: object) -> Run:
    return Run(**{"sweep": "s", "sweep_id": "1", "trial": 0, "directory": directory, **rest})  # type: ignore[arg-type]


def test_importing_the_trackers_is_light() -> None:
    heavy = ("wandb", "torch", "ray", "numpy")
    code = f"import sys, search.trackers; print([name for name in {heavy} if name in sys.modules])"
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert time.monotonic() - begun < 1.0  # 0.05 s alone on the machine


def test_a_run_id_is_stable_unique_and_valid_for_any_sweep_name(tmp_path: Path) -> None:
    names = ["quickstart", "quick start", "Über/die:Brücke?", "x" * 200, "quick-start"]
    runs = [
        run(tmp_path, sweep=name, sweep_id=key, trial=n) for name in names for key in "ab" for n in (0, 11)
    ]
    ids = [one.id for one in runs]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", one) for one in ids)
    assert ids[0] == run(tmp_path / "moved", sweep="quickstart", sweep_id="a", trial=0).id
    assert run(tmp_path, sweep="quickstart", trial=3).name == "quickstart-3"


def test_seen_leaves_out_metrics_up_to_where_they_were_logged() -> None:
    seen = Seen({"train/loss": 64})
    assert seen.new({"train/loss": 1.0, "eval/loss": 2.0}, 64) == {"eval/loss": 2.0}
    assert seen.new({"train/loss": 1.0, "eval/loss": 2.0}, 64) == {}
    assert seen.new({"train/loss": 1.0}, 96) == {"train/loss": 1.0}


class Broken(NoTracker):
    def __init__(self) -> None:
        self.calls = 0

    def log(self, trial: int, metrics: Mapping[str, Value], *, examples: int) -> None:
        self.calls += 1
        raise OSError("no space left on device")


def test_a_tracker_that_raises_is_dropped_with_one_warning_and_the_rest_go_on(tmp_path: Path) -> None:
    broken = Broken()
    both = Composite([broken, JsonlTracker()])
    both.start(run(tmp_path))
    for step in (1, 2, 3):
        both.log(0, {"train/loss": 1.0}, examples=step)
    both.close(1)
    assert broken.calls == 1
    assert list(both.warnings) == ["Broken is out of use: log failed with OSError: no space left on device"]
    assert (tmp_path / "metrics.jsonl").read_text().count('"log"') == 3
    assert both.locations() == [str(tmp_path / "metrics.jsonl")]
    assert isinstance(both, Tracker)


def test_build_names_an_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tracking\.mlflow: unknown tracker; one of jsonl, wandb is right"):
        build({"mlflow": {}})
    assert build({"wandb": None}).locations() == []


def test_the_settings_are_strict_where_they_are_read() -> None:
    adapter = TypeAdapter(WandbConfig)
    assert adapter.validate_python({"mode": "offline"}) == WandbConfig(mode="offline")
    for wrong in ({"projekt": "x"}, {"mode": "sometimes"}, {"project": ""}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    assert adapter.json_schema()["properties"]["mode"]["description"].startswith("`auto`")
