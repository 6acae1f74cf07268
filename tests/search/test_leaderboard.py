"""The leaderboard: rows for programs, a table for humans."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from search.records import PhaseRecord, Result, TrialRecord, TrialState
from search.results.leaderboard import best_checkpoint, best_row, best_text, rows, table, to_csv, to_json
from search.results.text import duration, measure, number, short_names

METRIC = "eval/accuracy"
TRIALS = [
    TrialRecord(
        number=0,
        state=TrialState.COMPLETE,
        params={"learning_rate": 0.000123456, "batch_size": 32, "unfreezing.schedule": "head"},
        seed=1,
        results=(
            Result(epochs=1.0, metrics={METRIC: 0.8, "eval/loss": 0.5}, checkpoint="c/0/1", seconds=10.0),
            Result(epochs=2.0, metrics={METRIC: 0.7, "eval/loss": math.nan}, checkpoint=None, seconds=20.5),
        ),
        phases=(PhaseRecord(name="head", start_epoch=0.0, thawed="head"),),
    ),
    TrialRecord(
        number=1,
        state=TrialState.FAILED,
        params={"learning_rate": 1.0, "batch_size": 64, "unfreezing.schedule": "top", "unfreezing.depth": 2},
        seed=2,
        error="out of memory, at [micro batch] 64",
    ),
    TrialRecord(
        number=2,
        state=TrialState.PRUNED,
        params={"learning_rate": 3e-5, "batch_size": 16, "unfreezing.schedule": "top", "unfreezing.depth": 4},
        seed=3,
        results=(Result(epochs=0.5, metrics={METRIC: 0.85}, checkpoint="c/2/1", seconds=4.0),),
    ),
    TrialRecord(
        number=3,
        state=TrialState.RUNNING,
        params={"learning_rate": 1e-4, "batch_size": 16, "unfreezing.schedule": "head"},
        seed=4,
    ),
]


def test_rows_have_the_contract_s_keys() -> None:
    first, failed, pruned, running = rows(TRIALS, METRIC, "maximize")
    assert first == {
        "trial": 0,
        "state": "complete",
        "params": {"learning_rate": 0.000123456, "batch_size": 32, "unfreezing.schedule": "head"},
        "value": 0.8,
        "last": {METRIC: 0.7, "eval/loss": None},
        "epochs": 2.0,
        "phases": [{"name": "head", "thawed": "head", "start_epoch": 0.0}],
        "seconds": 20.5,
        "checkpoint": "c/0/1",
        "error": None,
        "gpu_seconds": 0.0,
        "note": None,
        "decisions": [],
    }
    assert (failed["state"], failed["value"], failed["checkpoint"]) == ("failed", None, None)
    assert (failed["last"], failed["error"]) == ({}, "out of memory, at [micro batch] 64")
    assert [r["trial"] for r in (first, failed, pruned, running)] == [0, 1, 2, 3]


def test_json_is_strict() -> None:
    def no(name: str) -> None:
        raise AssertionError(name)

    text = to_json(rows(TRIALS, METRIC, "maximize"))
    assert json.loads(text, parse_constant=no) == rows(TRIALS, METRIC, "maximize")
    infinite = TrialRecord(
        number=0,
        state=TrialState.RUNNING,
        params={"p": [math.inf, {"q": math.nan}]},
        seed=0,
        results=(Result(epochs=1, metrics={METRIC: -math.inf}),),
    )
    (row,) = json.loads(to_json(rows([infinite], METRIC, "maximize")), parse_constant=no)
    assert row["params"] == {"p": [None, {"q": None}]}
    assert (row["value"], row["last"]) == (None, {METRIC: None})


def test_csv_flattens_parameters_and_metrics() -> None:
    read = list(csv.DictReader(io.StringIO(to_csv(rows(TRIALS, METRIC, "maximize")))))
    assert len(read) == 4
    assert read[0]["params.learning_rate"] == "0.000123456"
    assert read[0]["params.unfreezing.depth"] == ""
    assert read[2]["params.unfreezing.depth"] == "4"
    assert (read[0]["last.eval/accuracy"], read[0]["last.eval/loss"]) == ("0.7", "")
    assert read[0]["phases"] == "head@0"
    assert read[1]["error"] == "out of memory, at [micro batch] 64"
    assert to_csv([]).startswith("trial,state,value,epochs,seconds,")


def test_best() -> None:
    best = best_row(TRIALS, METRIC, "maximize")
    assert best is not None
    assert (best["trial"], best["value"], best["checkpoint"]) == (2, 0.85, "c/2/1")
    worst = best_row(TRIALS, METRIC, "minimize")
    assert worst is not None
    assert (worst["trial"], worst["value"]) == (0, 0.7)
    assert best_row(TRIALS[3:], METRIC, "maximize") is None
    text = best_text(TRIALS, METRIC, "maximize")
    assert [line.split(maxsplit=1) for line in text.splitlines()][:2] == [
        ["trial", "2 (pruned)"],
        [METRIC, "0.8500"],
    ]
    assert "c/2/1" in text
    assert best_text([], METRIC, "maximize") == "No trial has a value of eval/accuracy yet."


def test_the_checkpoint_is_that_of_the_best_evaluation_that_has_one() -> None:
    assert best_checkpoint(TRIALS[0], METRIC, "maximize") == "c/0/1"
    assert best_checkpoint(TRIALS[0], METRIC, "minimize") == "c/0/1", "the best one's is gone"
    assert best_checkpoint(TRIALS[1], METRIC, "maximize") is None


def shown(width: int, trials: list[TrialRecord] = TRIALS) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(trials, METRIC, "maximize", title="sweep", width=width))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_table_is_sorted_and_short() -> None:
    lines = shown(120)
    assert lines[0] == "sweep"
    header = "trial state eval/accuracy epochs lr batch schedule depth time error"
    assert lines[1].split() == header.split()
    assert [line.split()[0] for line in lines[2:]] == ["2", "0", "1", "3"]
    assert lines[2].split()[1:9] == ["pruned", "0.8500", "0.5", "3e-05", "16", "top", "4", "4s"]
    assert "0.0001235" in lines[3]
    assert lines[4].endswith("out of memory, at [micro batch] 64")


def test_table_fits_by_leaving_columns_out() -> None:
    for width in (80, 60, 40):
        lines = shown(width)
        assert max(map(len, lines)) <= width
        assert len(lines) == 6, "one line a trial"
        assert lines[1].split()[:3] == ["trial", "state", METRIC]
        assert "0.8500" in lines[2]
    assert "…" not in "".join(shown(200))


def test_short_names_are_unambiguous() -> None:
    paths = ["learning_rate", "unfreezing.schedule", "zero.stage", "task.max_length", "model.max_length"]
    assert short_names(paths) == {
        "learning_rate": "lr",
        "unfreezing.schedule": "schedule",
        "zero.stage": "stage",
        "task.max_length": "task.max_length",
        "model.max_length": "model.max_length",
    }
    assert short_names(["schedule", "unfreezing.schedule"])["unfreezing.schedule"] == "unfreezing.schedule"
    assert short_names(["learning_rate", "x.lr"]) == {"learning_rate": "learning_rate", "x.lr": "lr"}


def test_texts() -> None:
    assert [number(v) for v in (0.000123456, 32, "top", None, 3.0, True)] == [
        "0.0001235",
        "32",
        "top",
        "-",
        "3",
        "True",
    ]
    assert [measure(v) for v in (0.85, 0.0, 12.5, 1e-5, 1e9, math.nan, None)] == [
        "0.8500",
        "0.0000",
        "12.5000",
        "1.000e-05",
        "1.000e+09",
        "nan",
        "-",
    ]
    assert [duration(v) for v in (8.2, 65, 3599.7, 7620, 273600, None, math.inf)] == [
        "8s",
        "1m05s",
        "1h00m",
        "2h07m",
        "3d04h",
        "-",
        "-",
    ]


def test_reading_needs_no_heavy_package() -> None:
    code = "import sys, search.results.leaderboard, search.progress, search.retention, search.schedulers; "
    code += "print([m for m in ('optuna', 'torch', 'ray', 'wandb', 'datasets') "
    code += "if m in sys.modules])"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
