"""What a sweep is to weigh and what it may spend, on real gangs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.budget import Meter, Sitting, stagnation
from search.driver import Driver
from search.life import SweepState, Wanted, state_of
from search.schedulers import Decision
from search.spec import SweepSpec
from search.study import TrialState
from search.sweep import Sweep
from tests.cli import Thaw, caller
from training.reporter import Evaluation

Make = Callable[..., SweepSpec]
Run = Callable[[SweepSpec, Path], Sweep]

SEARCH: dict[str, Any] = {
    "metric": {"name": "eval/accuracy", "goal": "maximize"},
    "sampler": "random",
    "scheduler": "none",
    "default_points": False,
    "seed": 1,
}


@pytest.mark.slow
def test_quality_against_latency(
    make_spec: Make,
    run_sweep: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = make_spec(
        training={"epochs": 1, "evaluations_per_epoch": 4, "batch_size": 16},
        parameters={
            "learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-3},
            "task.max_length": {"values": [8, 32]},
        },
        search=SEARCH
        | {
            "sampler": "auto",
            "scheduler": "auto",
            "trials": 4,
            "objectives": [{"name": "cost/latency", "goal": "minimize"}],
        },
    )
    made = run_sweep(spec, tmp_path)
    study = made.read()
    trials = study.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert study._made["sampler"] == "nsga2"
    best = {t.number: t.best_result(study.metric, study.goal) for t in trials}
    found = {n: (r.metrics["eval/accuracy"], -r.metrics["cost/latency"]) for n, r in best.items() if r}
    assert len(found) == 4
    assert all(latency < 0 for _, latency in found.values())
    front = {
        number
        for number, own in found.items()
        if not any(other != own and all(map(float.__ge__, other, own)) for other in found.values())
    }
    thaw: Thaw = caller(monkeypatch, capsys)
    told = thaw("best", spec.name, "--pareto", "--json", "--storage", tmp_path)
    assert told.code == 0, told.err
    rows = json.loads(told.out)
    assert {row["trial"] for row in rows} == front
    for better, worse in itertools.pairwise(row["values"] for row in rows):
        assert better["eval/accuracy"] >= worse["eval/accuracy"]
        assert better["cost/latency"] >= worse["cost/latency"]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [{"hours": 0.02}, {"cost": 0.04}], ids=["hours", "cost"])
def test_the_first_evaluation_beyond_a_budget_is_the_last(
    make_spec: Make, run_sweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, float]
) -> None:
    read_s: list[float] = []
    used_s: list[float] = []  # at each evaluation

    def read(meter: Meter) -> Sitting:
        sitting = measured(meter)
        read_s.append(sitting.seconds)
        return sitting

    def evaluated(driver: Driver, number: int, evaluation: Evaluation) -> Decision:
        decision = decided(driver, number, evaluation)
        used_s.append(read_s[-1])
        return decision

    measured, decided = Meter.read, Driver.evaluated
    monkeypatch.setattr(Meter, "read", read)
    monkeypatch.setattr(Driver, "evaluated", evaluated)
    spec = make_spec(
        training={"epochs": 1000, "evaluations_per_epoch": 2, "batch_size": 16},
        search=SEARCH | {"trials": 2, "budget": budget},
        resources={"workers": 1, "max_concurrent": 1, "prices": {"default": 2.0}},
    )
    made = run_sweep(spec, tmp_path)
    limit_s = 72.0  # at a price of 2 an hour 0.04 buys as much as 0.02 hours
    *within, last = used_s
    assert last >= limit_s
    assert all(seconds < limit_s + 0.5 for seconds in within)  # it is read by another thread as well
    study = made.read()
    (trial,) = study.trials()
    assert trial.state is TrialState.PRUNED
    assert len(trial.results) == len(used_s)
    assert trial.checkpoint is not None
    assert Path(trial.checkpoint).is_dir()
    assert study.life.wanted is Wanted.HALT
    assert study.life.reason.startswith(f"search.budget.{next(iter(budget))}: ")
    assert state_of(study.life, study.trials(), 2, driven=False) is SweepState.STOPPED
    assert not (made.directory / ".ray").exists()


@pytest.mark.slow
def test_patience_ends_a_sweep_that_finds_nothing_better(
    make_spec: Make, run_sweep: Run, tmp_path: Path
) -> None:
    spec = make_spec(
        training={"epochs": 1, "evaluations_per_epoch": 1, "batch_size": 16},
        parameters={"learning_rate": {"distribution": "log_uniform_values", "min": 1e-12, "max": 1e-11}},
        search=SEARCH | {"trials": 9, "budget": {"patience": 2}},
    )
    study = run_sweep(spec, tmp_path).read()
    trials = study.trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len(trials) < 9
    since = [stagnation(trials[:count], study.metric, study.goal) for count in range(1, len(trials) + 1)]
    assert since.index(2) == len(trials) - 1
    assert study.life.wanted is Wanted.DRAIN
    assert "no better trial among the last 2" in study.life.reason
