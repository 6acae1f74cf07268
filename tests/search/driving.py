"""A driver in virtual time: a loop stands for the trainers; study, scheduler and files are real."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search.driver import Driver
from search.records import TrialRecord
from search.schedulers import Decision
from search.schedulers.rungs import Ladder
from search.spec import parse
from search.trackers import NoTracker, Run, Value
from training.reporter import Evaluation

METRIC = "eval/accuracy"


SPACE = parse(
    {
        "name": "sweep",
        "model": {"name": "some/model"},
        "data": {"train": "a", "validation": "b"},
        "parameters": {
            "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1},
            "batch_size": {"values": [16, 32, 64]},
            "unfreezing.schedule": {"values": ["head", "top", "full"]},
            "unfreezing.depth": {"min": 1, "max": 6, "when": {"unfreezing.schedule": "top"}},
        },
        "search": {"metric": {"name": METRIC, "goal": "maximize"}},
    }
).space


EPOCHS = 4


LADDER = Ladder(metric=METRIC, goal="maximize", epochs=EPOCHS, lowest=1, factor=2)


@dataclass
class Recorder(NoTracker):
    """A tracker that notes what it is told."""

    runs: dict[int, Run] = field(default_factory=dict)
    logged: list[tuple[int, int, dict[str, Value]]] = field(default_factory=list)
    summaries: dict[int, dict[str, Value]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)

    def start(self, run: Run) -> None:
        self.runs[run.trial] = run

    def log(self, trial: int, metrics: Mapping[str, Value], *, examples: int) -> None:
        self.logged.append((trial, examples, dict(metrics)))

    def summarize(self, trial: int, values: Mapping[str, Value]) -> None:
        self.summaries.setdefault(trial, {}).update(values)

    def finish(self, trial: int, state: str) -> None:
        self.finished[trial] = state


def quality(params: Mapping[str, Any], epochs: float) -> float:
    return 1 - 0.1 * abs(math.log10(params["learning_rate"]) + 3) - 0.1 / epochs


def evaluation(directory: Path, record: TrialRecord, epochs: float, value: float | None = None) -> Evaluation:
    """An evaluation whose checkpoint is really there."""
    checkpoint = directory / "trials" / f"{record.number:04d}" / f"{epochs:g}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "weights").write_text("w")
    return Evaluation(
        step=round(100 * epochs),
        last=False,
        examples=round(1600 * epochs),
        epochs=epochs,
        phase="full",
        metrics={METRIC: quality(record.params, epochs) if value is None else value, "eval/loss": 0.5},
        checkpoint=str(checkpoint),
        seconds=10 * epochs,
    )


def train(driver: Driver, directory: Path, record: TrialRecord) -> TrialRecord:
    """Trains a trial from where it stands until its sitting ends."""
    for epochs in range(round(record.epochs) + 1, EPOCHS + 1):
        told = replace(evaluation(directory, record, epochs), last=epochs == EPOCHS)
        if driver.evaluated(record.number, told) is not Decision.CONTINUE:
            break
    return driver.ended(record.number)


def checkpoints(directory: Path) -> set[str]:
    return {str(path.parent) for path in directory.glob("trials/*/*/weights")}


Make = Callable[..., Driver]


def run(driver: Driver, directory: Path) -> list[TrialRecord]:
    """One trial at a time, to the end."""
    while record := driver.next_trial():
        train(driver, directory, record)
    assert driver.over
    driver.finish()
    return list(driver.records())
