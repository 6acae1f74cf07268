"""How long a search takes to think: an ask and a tell as a sweep grows.

    python -m tests.benchmarks.ask_tell [--sampler auto] [--trials 1000]

Eight parameters, three of them conditional; every trial has four evaluations and the real ledger on disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from search.config import SamplerConfig
from search.samplers import SAMPLERS
from search.study import Result, Study, TrialState

_LAST = 50


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    params: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1.0, log=True),
        "warmup": trial.suggest_float("warmup", 0.0, 0.5),
        "batch_size": trial.suggest_categorical("batch_size", [16, 32, 64]),
        "schedule": trial.suggest_categorical("schedule", ["head", "top", "gradual", "full"]),
    }
    if params["schedule"] in ("top", "gradual"):
        params["depth"] = trial.suggest_int("depth", 1, 12)
    if params["schedule"] == "gradual":
        params["interval"] = trial.suggest_float("interval", 0.1, 1.0)
    if params["schedule"] != "head":
        params["decay"] = trial.suggest_float("decay", 0.5, 1.0)
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sampler", default="auto", choices=sorted(set(SAMPLERS) - {"grid"}))
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    wall: list[float] = []
    own: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        study = Study.open(
            Path(directory) / "study.journal",
            name="ask-tell",
            suggest=suggest,
            metric="loss",
            goal="minimize",
            sampler=SamplerConfig(type=options.sampler),
            seed=0,
        )
        for number in range(options.trials):
            began, cpu = time.perf_counter(), time.process_time()
            trial = study.ask()
            asked, asked_cpu = time.perf_counter() - began, time.process_time() - cpu
            loss = abs(np.log10(trial.params["learning_rate"]) + 4) + float(rng.normal(scale=0.1))
            full = number % 4 == 0
            for epoch in range(1, 5 if full else 2):
                study.report(trial.number, Result(epochs=epoch, metrics={"loss": loss + 1 / epoch}))
            began, cpu = time.perf_counter(), time.process_time()
            study.tell(trial.number, TrialState.COMPLETE if full else TrialState.PRUNED)
            wall.append(asked + time.perf_counter() - began)
            own.append(asked_cpu + time.process_time() - cpu)
            if (number + 1) % 100 == 0:
                print(
                    f"{options.sampler}, {number + 1} trials: ask + tell, median of the last {_LAST}: "
                    f"{1e3 * statistics.median(wall[-_LAST:]):.1f} ms, "
                    f"of which processor {1e3 * statistics.median(own[-_LAST:]):.1f} ms",
                    flush=True,
                )


if __name__ == "__main__":
    main()
