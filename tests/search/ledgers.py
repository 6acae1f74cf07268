"""A ledger, and a driver that fills it one trial at a time, in this process or in one of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna

from search.config import SamplerConfig
from search.study import Result, Study, TrialState

METRIC = "eval/accuracy"
ROOT = Path(__file__).parents[2]


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    params: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [16, 32, 64]),
        "unfreezing.schedule": trial.suggest_categorical("unfreezing.schedule", ["head", "top", "full"]),
        "epochs": 2,  # fixed: no parameter of Optuna's
    }
    if params["unfreezing.schedule"] == "top":
        params["unfreezing.depth"] = trial.suggest_int("unfreezing.depth", 1, 6)
    return params


def opened(path: Path, **changes: Any) -> Study:
    settings: dict[str, Any] = {
        "name": "sweep",
        "suggest": suggest,
        "metric": METRIC,
        "goal": "maximize",
        "sampler": SamplerConfig(type="tpe", startup_trials=5),
        "seed": 7,
    }
    return Study.open(path, **(settings | changes))


def quality(params: dict[str, Any], epochs: float) -> float:
    return 1 - 0.2 * abs(math.log10(params["learning_rate"]) + 3.5) - 0.1 / epochs


def result(epochs: float, value: float, **changes: Any) -> Result:
    given: dict[str, Any] = {"checkpoint": f"checkpoints/{epochs}", "seconds": 10 * epochs}
    return Result(epochs=epochs, metrics={METRIC: value}, **(given | changes))


def go_on(study: Study, trials: int) -> None:
    """A driver: takes up what is unfinished, then runs new trials one at a time up to `trials`."""
    waiting = study.unfinished()
    while waiting or len(study.trials()) < trials:
        trial = waiting.pop(0) if waiting else study.ask()
        for epochs in (0.5, 1.0, 1.5, 2.0):
            if epochs > trial.epochs:
                trial = study.report(trial.number, result(epochs, quality(dict(trial.params), epochs)))
            if epochs == 1.0 and trial.number % 3 == 1:
                break
        study.tell(trial.number, TrialState.PRUNED if trial.number % 3 == 1 else TrialState.COMPLETE)


def storage(path: Path) -> optuna.storages.JournalStorage:
    """As optuna-dashboard opens it."""
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
