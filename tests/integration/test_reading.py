"""What a sweep's ledger shows on the command line: `trials`, `best` and their formats."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search.loading import load
from search.records import PhaseRecord, Result, TrialRecord, TrialState
from search.sweep import create
from tests.cli import Thaw, caller, write_sweep
from tests.conftest import REPOSITORY

METRIC = "eval/accuracy"
FIELDS = [
    "trial", "state", "params", "value", "last", "epochs", "phases", "seconds", "checkpoint", "error",
    "gpu_seconds", "note", "decisions",
]  # fmt: skip


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thaw:
    return caller(monkeypatch, capsys)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A sweep of three trials: one complete, one that failed after it diverged, one that runs."""
    made = create(load(str(write_sweep(tmp_path))), tmp_path / "runs")
    study = made.open()
    for number in range(3):
        study.ask()
        study.record_phases(number, [PhaseRecord(name="head", start_epoch=0.0, thawed="head")])
    for epochs, value in ((1.0, 0.8), (2.0, 0.75)):
        metrics = {METRIC: value, "eval/loss": 0.5}
        study.report(
            0, Result(epochs=epochs, metrics=metrics, checkpoint=f"trials/0000/{epochs}", seconds=epochs * 10)
        )
    study.tell(0, TrialState.COMPLETE)
    study.report(1, Result(epochs=1.0, metrics={METRIC: 0.5, "eval/loss": math.nan}, seconds=9.0))
    study.tell(1, TrialState.FAILED, 'Diverged: "loss", nan\nTraceback')
    return tmp_path / "runs"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A sweep that has no trials yet."""
    create(load(str(write_sweep(tmp_path))), tmp_path / "runs")
    return tmp_path / "runs"


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def ledger(storage: Path) -> list[TrialRecord]:
    from search.sweep import find

    return find("tiny", storage).read().trials()


def test_trials_as_json(thaw: Thaw, storage: Path) -> None:
    outcome = thaw("trials", "tiny", "--storage", storage, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    rows = strict(outcome.out)
    assert [list(row) for row in rows] == [FIELDS] * 3
    complete, failed, running = rows
    assert complete == {
        "trial": 0,
        "state": "complete",
        "params": ledger(storage)[0].params,
        "value": 0.8,
        "last": {METRIC: 0.75, "eval/loss": 0.5},
        "epochs": 2.0,
        "phases": [{"name": "head", "thawed": "head", "start_epoch": 0.0}],
        "seconds": 20.0,
        "checkpoint": "trials/0000/1.0",
        "error": None,
        "gpu_seconds": 0.0,
        "note": None,
        "decisions": [],
    }
    assert set(complete["params"]) == {"learning_rate", "unfreezing.schedule"}
    assert (failed["state"], failed["value"], failed["error"]) == ("failed", 0.5, 'Diverged: "loss", nan')
    assert failed["last"] == {METRIC: 0.5, "eval/loss": None}
    assert (running["state"], running["value"], running["last"], running["epochs"]) == (
        "running",
        None,
        {},
        0,
    )
    assert running["checkpoint"] is None


def test_trials_as_csv(thaw: Thaw, storage: Path) -> None:
    outcome = thaw("trials", "tiny", "--storage", storage, "--csv")
    assert (outcome.code, outcome.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert [(row["trial"], row["state"], row["value"]) for row in rows] == [
        ("0", "complete", "0.8"),
        ("1", "failed", "0.5"),
        ("2", "running", ""),
    ]
    assert float(rows[0]["params.learning_rate"]) == ledger(storage)[0].params["learning_rate"]
    assert rows[0][f"last.{METRIC}"] == "0.75"
    assert rows[1]["error"] == 'Diverged: "loss", nan'


def test_trials_as_a_table(thaw: Thaw, storage: Path) -> None:
    outcome = thaw("trials", "tiny", "--storage", storage)
    assert (outcome.code, outcome.err) == (0, "")
    title, header, *lines = outcome.out.splitlines()
    assert title.strip() == "tiny"
    assert header.split()[:3] == ["trial", "state", METRIC]
    assert [line.split()[:3] for line in lines] == [
        ["0", "complete", "0.8000"],
        ["1", "failed", "0.5000"],
        ["2", "running", "-"],
    ]
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_the_best_trial(thaw: Thaw, storage: Path) -> None:
    outcome = thaw("best", "tiny", "--storage", storage)
    assert (outcome.code, outcome.err) == (0, "")
    told = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert told["trial"] == "0 (complete)"
    assert told[METRIC] == "0.8000"
    assert told["checkpoint"] == "trials/0000/1.0"
    assert {"learning_rate", "unfreezing.schedule"} <= set(told)
    as_json = thaw("best", "tiny", "--storage", storage, "--json")
    assert (as_json.code, as_json.err) == (0, "")
    all_rows = strict(thaw("trials", "tiny", "--storage", storage, "--json").out)
    assert strict(as_json.out) == all_rows[0]


def test_a_sweep_without_trials(thaw: Thaw, empty: Path) -> None:
    where = ("tiny", "--storage", empty)
    assert strict(thaw("trials", *where, "--json").out) == []
    header, *lines = thaw("trials", *where, "--csv").out.splitlines()
    assert header.startswith("trial,state,value")
    assert lines == []
    table = thaw("trials", *where)
    assert (table.code, table.err) == (0, "")
    assert strict(thaw("best", *where, "--json").out) is None
    best = thaw("best", *where)
    assert (best.code, best.out, best.err) == (0, f"No trial has a value of {METRIC} yet.\n", "")
    export = thaw("export", *where, "-o", empty / "out")
    assert export.code == 2
    assert export.err == f"error: tiny: no trial has a value of {METRIC} yet, so there is nothing to export\n"
    assert not (empty / "out").exists()


def test_json_and_csv_exclude_each_other(thaw: Thaw, storage: Path) -> None:
    outcome = thaw("trials", "tiny", "--storage", storage, "--json", "--csv")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: --json and --csv: both were given; choose one\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trial", "9"], "there is no trial 9 in sweep tiny; it has 3 trials"),
        (["--trial", "-1"], "there is no trial -1 in sweep tiny; it has 3 trials"),
        (["--trial", "1"], "trial 1: its checkpoint was not kept; the sweep keeps those of the best 3 trials "
         "(checkpoints.keep)"),
    ],
)  # fmt: skip
def test_an_export_of_what_is_not_there(thaw: Thaw, storage: Path, options: list[str], message: str) -> None:
    outcome = thaw("export", "tiny", "--storage", storage, "-o", storage / "out", *options)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: {message}\n")
    assert not (storage / "out").exists()


def test_an_export_never_overwrites(thaw: Thaw, storage: Path) -> None:
    (storage / "out").mkdir()
    (storage / "out" / "thesis.tex").write_text("mine")
    outcome = thaw("export", "tiny", "--storage", storage, "-o", storage / "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: {storage}/out: is there already and not empty; give a new directory\n"
    assert [path.name for path in (storage / "out").iterdir()] == ["thesis.tex"]


def test_reading_changes_nothing(thaw: Thaw, storage: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in storage.rglob("*")}
    for command in ("trials", "best"):
        assert thaw(command, "tiny", "--storage", storage).code == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in storage.rglob("*")} == before


def test_a_real_process_writes_one_document(storage: Path) -> None:
    """Nothing but the document, whatever libraries print on the way."""
    ended = subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "launch.py"),
            "trials",
            "tiny",
            "--json",
            "--storage",
            str(storage),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(strict(ended.stdout)) == 3
    assert ended.stdout.startswith("[")
