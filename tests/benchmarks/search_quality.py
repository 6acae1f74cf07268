"""What a search finds for its training: methods against each other on recorded learning curves.

    python -m tests.benchmarks.search_quality --curves DIR --workers 4 --seeds 10 --out results.json

Every method runs as a sweep would, by the same study, sampler and scheduler, in virtual time. Regret is
normalised per table: 0 is the best recorded value, 1 the median configuration's best. A full training is
as many epochs as the table has. A run that was cut off goes on from OUT.partial.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search import samplers, virtual
from search.config import MetricConfig, SamplerConfig, SchedulerConfig
from search.records import Result, TrialRecord, TrialState, score
from search.samplers.seen import Seeing, retold
from search.schedulers import Decision, Scheduler, make_scheduler
from search.study import Study
from search.virtual import Table, normalised_regret
from training.config import TrainingConfig
from training.reporter import Evaluation

BUDGETS = (3.0, 7.5, 15.0, 30.0)
"""In full trainings, over all workers."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A sampler and a scheduler, by the settings of a sweep file."""

    sampler: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=lambda: {"type": "none"})


METHODS: dict[str, Method] = {
    "random": Method(sampler={"type": "random"}),
    "tpe": Method(sampler={"type": "tpe"}),
    "random + stopping asha": Method(sampler={"type": "random"}, scheduler={"type": "asha"}),
    "tpe + stopping asha, as Ray tells it": Method(sampler={"type": "ray"}, scheduler={"type": "asha"}),
    "bohb": Method(sampler={"type": "bohb"}, scheduler={"type": "bohb", "mode": "promote"}),
    "pasha": Method(sampler={"type": "random"}, scheduler={"type": "pasha"}),
    "thaw": Method(sampler={"type": "auto"}, scheduler={"type": "auto"}),
}


def _as_ray_tells(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Every trial that ended as complete with its last value, as Ray's OptunaSearch enters it."""
    told = []
    for trial in trials:
        if trial.state.is_finished() and trial.intermediate_values:
            last = trial.intermediate_values[max(trial.intermediate_values)]
            trial = retold(trial, OptunaState.COMPLETE, last)
        told.append(trial)
    return told


def _ray(config: SamplerConfig, seed: int, suggest: samplers.Suggest) -> optuna.samplers.BaseSampler:
    return Seeing(optuna.samplers.TPESampler(seed=seed), _as_ray_tells)


class _Sweep:
    """What the driver does, without checkpoints, trackers and commands."""

    def __init__(self, study: Study, scheduler: Scheduler) -> None:
        self.study = study
        self._scheduler = scheduler
        self._stopped: set[int] = set()

    def next_trial(self) -> TrialRecord:
        number = self._scheduler.next(self.study.trials(), more=True)
        if number is None:
            return self.study.ask()
        return self.study.rule(number, "promote", "benchmark")

    def evaluated(self, number: int, evaluation: Evaluation) -> Decision:
        result = Result(epochs=evaluation.epochs, metrics=evaluation.metrics)
        record = self.study.report(number, result)
        if evaluation.last:
            return Decision.CONTINUE
        decision = self._scheduler.decide(record, self.study.trials())
        if decision is Decision.PAUSE:
            self.study.rule(number, "pause", "benchmark")
        elif decision is Decision.STOP:
            self._stopped.add(number)
        return decision

    def ended(self, number: int) -> None:
        self.study.tell(number, TrialState.PRUNED if number in self._stopped else TrialState.COMPLETE)

    def records(self) -> Sequence[TrialRecord]:
        return self.study.trials()


class _Spent(Exception):
    pass


def regrets(table: Table, method: Method, seed: int, workers: int, directory: Path) -> list[float]:
    """The normalised regret of the best value seen at each budget."""
    samplers.SAMPLERS["ray"] = _ray
    goal = table.goal
    study = Study.open(
        directory / "study.journal",
        name="search-quality",
        suggest=table.suggest,
        metric=table.metric,
        goal=goal,
        sampler=SamplerConfig(**method.sampler),
        seed=seed,
    )
    scheduler = make_scheduler(
        SchedulerConfig(**method.scheduler),
        MetricConfig(name=table.metric, goal=goal),
        TrainingConfig(epochs=table.epochs, evaluations_per_epoch=1),
    )
    found: list[float] = []
    spent, best = 0, float("-inf")

    def on_evaluation(number: int, evaluation: Evaluation) -> None:
        nonlocal spent, best
        spent += 1
        best = max(best, score(evaluation.metrics[table.metric], goal))
        while len(found) < len(BUDGETS) and spent >= BUDGETS[len(found)] * table.epochs:
            found.append(normalised_regret(table, best if goal == "maximize" else -best))
        if len(found) == len(BUDGETS):
            raise _Spent

    try:
        virtual.run(_Sweep(study, scheduler), table, workers=workers, on_evaluation=on_evaluation)
    except _Spent:
        return found
    raise AssertionError("the sweep ended before its budget")


Job = tuple[str, str, int, int]
"""Method, path of the table, seed, workers."""


def _run(job: Job) -> tuple[Job, list[float]]:
    name, path, seed, workers = job
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        return job, regrets(Table.load(Path(path)), METHODS[name], seed, workers, Path(directory))


def summary(cells: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Median and mean regret and mean rank by method, over the cells (table and seed) that all have."""
    common = sorted(set.intersection(*(set(own) for own in cells.values())))
    values = np.array([[cells[name][cell] for cell in common] for name in cells])  # [method, cell, budget]
    better = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    ranks = better + (equal + 1) / 2
    return {
        "budgets": list(BUDGETS),
        "cells": len(common),
        "methods": {
            name: {
                "median": np.median(values[i], axis=0).round(4).tolist(),
                "mean": values[i].mean(axis=0).round(4).tolist(),
                "rank": ranks[i].mean(axis=0).round(3).tolist(),
            }
            for i, name in enumerate(cells)
        },
    }


def show(found: dict[str, Any]) -> str:
    """The summary as text."""
    lines = [f"{found['cells']} cells; at " + " / ".join(f"{b:g}" for b in BUDGETS) + " full trainings"]
    lines.append(f"{'':38}{'median regret':28}{'mean regret':28}mean rank")
    for name, figures in found["methods"].items():
        columns = ["  ".join(f"{v:5.3f}" for v in figures[key]) for key in ("median", "mean", "rank")]
        lines.append(f"{name:38}{columns[0]:28}{columns[1]:28}{columns[2]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--curves", type=Path, required=True, help="directory of .npz tables")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--tables", nargs="*", help="names of tables; all without")
    options = parser.parse_args()
    tables = sorted(p for p in options.curves.glob("*.npz") if not options.tables or p.stem in options.tables)
    if not tables:
        parser.error(f"{options.curves} has no such tables")
    partial = options.out.with_name(options.out.name + ".partial")
    cells: dict[str, dict[str, list[float]]] = {name: {} for name in options.methods}
    lines = partial.read_text().splitlines() if partial.exists() else []
    for name, cell, found in map(json.loads, lines):
        cells.setdefault(name, {})[cell] = found
    # Seed by seed, so that a run that is cut off has whole seeds to compare.
    jobs: list[Job] = [
        (name, str(path), seed, options.workers)
        for seed in range(options.seeds)
        for path in tables
        for name in options.methods
        if f"{path.stem}/{seed}" not in cells[name]
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool, partial.open("a") as log:
        for done, ((name, path, seed, _), found) in enumerate(pool.imap_unordered(_run, jobs), 1):
            cells[name][f"{Path(path).stem}/{seed}"] = found
            log.write(json.dumps([name, f"{Path(path).stem}/{seed}", found]) + "\n")
            log.flush()
            if done % 50 == 0 or done == len(jobs):
                print(f"{done} of {len(jobs)} sweeps", file=sys.stderr, flush=True)
    chosen = {name: cells[name] for name in options.methods}
    found = summary(chosen)
    options.out.write_text(json.dumps({**found, "regrets": chosen}, indent=1) + "\n")
    print(show(found))


if __name__ == "__main__":
    main()
