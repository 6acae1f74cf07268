"""`thaw plan`: what it says, and that it starts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search import planning
from search.loading import load
from search.records import Result, TrialState
from search.sweep import create
from tests.cli import Thaw, caller, write_sweep


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thaw:
    monkeypatch.setenv("COLUMNS", "160")
    return caller(monkeypatch, capsys)


def test_plan(thaw: Thaw, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    file = write_sweep(tmp_path)
    told = thaw("plan", file, "--storage", storage)
    assert told.code == 0, told.err
    assert "4 trials of 3 epochs, by eval/accuracy (maximize)" in told.out
    assert "8 training and 4 validation examples, labels neg, pos" in told.out
    assert "scheduler auto with rungs at epochs 2" in told.out
    assert "trial 0" in told.out
    assert "learning_rate 0.0001" in told.out
    assert "no forecast: add --probe" in told.out
    assert not storage.exists()

    # An earlier sweep of the same kind, whose trials took 30 seconds an epoch.
    study = create(load(str(file)), storage).open()
    for _ in range(4):
        trial = study.ask()
        for epochs in (1.0, 2.0, 3.0):
            result = Result(epochs=epochs, metrics={"eval/accuracy": 0.5}, seconds=30 * epochs)
            study.report(trial.number, result)
        study.tell(trial.number, TrialState.COMPLETE)

    settings = ("--set", "search.scheduler=none", "--set", "name=next", "--set", "search.budget.hours=0.05")
    told = thaw(
        "plan", file, *settings, "--from", "tiny", "--concurrent", "2", "--json", "--storage", storage
    )
    assert told.code == 0, told.err
    document = json.loads(told.out)
    assert document["forecast"]["source"] == "tiny"
    assert document["forecast"]["full_epochs"] == document["forecast"]["epochs"] == 12
    assert 180 < document["forecast"]["wall_s"] < 180 + 90  # two trials one after the other, and Ray
    assert document["forecast"]["disk_bytes"] > 0
    assert [w.partition(":")[0] for w in document["warnings"]] == ["search.budget.hours"]
    assert {row["schedule"] for row in document["phases"]} == {"head", "top"}
    assert all(row["memory"]["thawed"] > 0 for row in document["phases"])
    assert not (storage / "next").exists()

    both = thaw("plan", file, "--probe", "--from", "tiny", "--storage", storage)
    assert (both.code, both.err) == (2, "error: --probe and --from: both were given; choose one\n")
    gone = thaw("plan", file, "--from", "tin", "--storage", storage)
    assert gone.code == 2
    assert f"--from: there is no sweep 'tin' in {storage}; did you mean tiny?" in gone.err


def test_plan_says_how_many_trials_share_a_gpu(
    thaw: Thaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sweep(tmp_path)
    storage = ("--storage", tmp_path / "runs")
    assert "a GPU holds" not in thaw("plan", file, *storage).out
    quarter = thaw("plan", file, "--set", "resources.gpus_per_worker=0.25", *storage)
    assert "a GPU holds  4 trials at a time\n" in quarter.out
    auto = ("--set", "resources.gpus_per_worker=auto")
    monkeypatch.setattr(planning, "_gpu_bytes", lambda spec: None)
    told = thaw("plan", file, *auto, *storage)
    assert "a GPU holds  1 trial at a time: there is no GPU yet whose memory could be looked at" in told.out
    monkeypatch.setattr(planning, "_gpu_bytes", lambda spec: 24 * 10**9)
    document = json.loads(thaw("plan", file, *auto, "--json", *storage).out)
    assert document["packing"]["trials_per_gpu"] == 8
    assert document["packing"]["gpus_per_worker"] == 0.125
