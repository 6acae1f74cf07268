"""Several objectives: the Pareto front, in the ledger and on the command line."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.config import SamplerConfig
from search.driver import Driver
from search.objectives import Objective, pareto
from search.problems import SpecError
from search.records import Result, TrialRecord, TrialState
from search.schedulers.asha import StoppingAsha
from search.schedulers.rungs import Ladder
from search.spec import SweepSpec, parse, trial_settings
from search.study import Study
from search.sweep import create
from search.trackers import NoTracker
from tests.cli import Thaw, caller
from training.reporter import Evaluation

QUALITY = Objective(name="eval/accuracy", goal="maximize")
SIZE = Objective(name="cost/parameters", goal="minimize")
LATENCY = Objective(name="cost/latency", goal="minimize")


def spec_of(**search: Any) -> SweepSpec:
    return parse(
        {
            "name": "several",
            "model": {"name": "some/model"},
            "data": {"train": "a", "validation": "b"},
            "training": {"epochs": 4},
            "parameters": {
                "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
                "unfreezing.schedule": {"values": ["head", "top"]},
                "unfreezing.depth": {"min": 1, "max": 6, "when": {"unfreezing.schedule": "top"}},
            },
            "search": {
                "metric": {"name": "eval/accuracy", "goal": "maximize"},
                "objectives": [{"name": "cost/parameters", "goal": "minimize"}],
                "default_points": False,
                **search,
            },
        }
    )


def record(number: int, *values: float, state: TrialState = TrialState.COMPLETE) -> TrialRecord:
    names = (QUALITY.name, SIZE.name, LATENCY.name)
    metrics = dict(zip(names, values, strict=False))
    return TrialRecord(
        number=number, state=state, params={}, seed=0, results=(Result(epochs=1, metrics=metrics),)
    )


def test_the_front_is_who_nobody_beats() -> None:
    trials = [
        record(0, 0.9, 100.0),
        record(1, 0.8, 10.0),
        record(2, 0.8, 50.0),  # 1 is as good and smaller
        record(3, 0.7, 10.0),  # 1 is as small and better
        record(4, 0.8, 10.0),  # the same as 1: neither beats the other
        record(5, 0.99, 1.0, state=TrialState.PRUNED),
        record(6, 0.95),  # has no size
        record(7, float("nan"), 1.0),
    ]
    assert [t.number for t in pareto(trials, [QUALITY, SIZE])] == [0, 1, 4]
    assert [t.number for t in pareto(trials, [QUALITY])] == [6]
    assert pareto([], [QUALITY, SIZE]) == []


def test_the_front_against_its_definition() -> None:
    draw = random.Random(3)
    trials = [record(n, *(draw.randrange(5) / 4 for _ in range(3))) for n in range(60)]
    of = {t.number: tuple(t.results[0].metrics.values()) for t in trials}

    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2]

    expected = {n for n in of if not any(beats(of[m], of[n]) for m in of)}
    assert {t.number for t in pareto(trials, [QUALITY, SIZE, LATENCY])} == expected


def run(spec: SweepSpec, storage: Path, trials: int) -> Driver:
    """A sweep whose quality and size pull in opposite directions, one trial at a time."""
    sweep = create(spec, storage)
    driver = Driver(
        study=sweep.open(),
        scheduler=StoppingAsha(Ladder(metric=QUALITY.name, goal="maximize", epochs=4, lowest=1)),
        tracker=NoTracker(),
        trials=trials,
        keep=1,
        directory=sweep.directory,
        sweep_id="id",
        describe=lambda record: {},
    )
    while (trial := driver.next_trial()) is not None:
        depth = trial.params.get("unfreezing.depth", 0)
        quality = 0.5 + 0.05 * depth - trial.params["learning_rate"]
        for epochs in range(1, 5):
            decision = driver.evaluated(
                trial.number,
                Evaluation(
                    step=epochs,
                    examples=epochs,
                    epochs=epochs,
                    phase="full",
                    metrics={QUALITY.name: quality + 0.01 * epochs},
                    checkpoint=f"trials/{trial.number:04d}/step-{epochs}",
                    seconds=epochs,
                    last=epochs == 4,
                    costs={SIZE.name: 1000.0 * (1 + depth), LATENCY.name: 2.0},
                ),
            )
            if decision == "stop":
                break
        driver.ended(trial.number)
    return driver


@pytest.mark.parametrize("sampler", ["auto", "tpe", "nsga2", "random", "qmc"])
def test_every_sampler_for_several_objectives_fills_the_ledger(tmp_path: Path, sampler: str) -> None:
    driver = run(spec_of(sampler=sampler), tmp_path, 18)
    trials = driver.records()
    assert len(trials) == 18
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(r.metrics.keys() == {QUALITY.name, SIZE.name} for t in trials for r in t.results)
    front = driver.study.pareto()
    assert front
    # Each can be exported, though but one is the best by the metric.
    assert all(t.best_result(QUALITY.name, QUALITY.goal).checkpoint is not None for t in front)  # type: ignore[union-attr]
    kept = [t.number for t in trials if t.checkpoint is not None]
    assert len(kept) < len(trials)
    for one, other in itertools.combinations(front, 2):
        assert one.results[-1].metrics[SIZE.name] > other.results[-1].metrics[SIZE.name]
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "several" / "study.journal"))
    )
    study = optuna.load_study(study_name="several", storage=storage)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert {t.number for t in study.best_trials} == {t.number for t in front}


def zdt1(trial: optuna.Trial) -> dict[str, float]:
    return {f"x{i}": trial.suggest_float(f"x{i}", 0, 1) for i in range(4)}


def missing(directory: Path, sampler: str, seed: int, trials: int = 100) -> float:
    """What a sweep's front leaves of the area that the best one has (ZDT1: Zitzler, Deb & Thiele 2000)."""
    study = Study.open(
        directory / f"{sampler}-{seed}",
        name="zdt1",
        suggest=zdt1,
        metric="f1",
        goal="minimize",
        objectives=[("f2", "minimize")],
        sampler=SamplerConfig(type=sampler),  # type: ignore[arg-type]
        seed=seed,
    )
    for _ in range(trials):
        trial = study.ask()
        first, *others = trial.params.values()
        steep = 1 + 9 * sum(others) / len(others)
        metrics = {"f1": first, "f2": steep * (1 - math.sqrt(first / steep))}
        study.report(trial.number, Result(epochs=1, metrics=metrics))
        study.tell(trial.number, TrialState.COMPLETE)
    area, worst = 0.0, 11.0
    for trial in study.pareto():
        f1, f2 = trial.results[0].metrics["f1"], trial.results[0].metrics["f2"]
        area, worst = area + (1.1 - f1) * (worst - f2), f2
    return 1.1 * 11.0 - 1 / 3 - area


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_the_front_of_a_sampler_that_learns_is_nearer_to_the_best_one(tmp_path: Path, sampler: str) -> None:
    learnt, chance = (
        statistics.median(missing(tmp_path, name, seed) for seed in range(3)) for name in (sampler, "random")
    )
    assert 0 <= learnt < 0.6 * chance


def test_a_sweep_goes_on_as_it_would_have(tmp_path: Path) -> None:
    whole = run(spec_of(sampler="tpe"), tmp_path / "a", 16).records()
    for count in (5, 9, 16):
        resumed = run(spec_of(sampler="tpe"), tmp_path / "b", count).records()
    assert resumed == whole


def test_best_pareto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    thaw: Thaw = caller(monkeypatch, capsys)
    monkeypatch.setenv("COLUMNS", "160")
    driver = run(spec_of(sampler="random"), tmp_path, 12)
    front = driver.study.pareto()
    told = thaw("best", "several", "--pareto", "--json", "--storage", tmp_path)
    assert told.code == 0, told.err
    rows = json.loads(told.out)
    assert [row["trial"] for row in rows] == [t.number for t in front]
    assert all(row["values"].keys() == {QUALITY.name, SIZE.name} for row in rows)
    assert (
        rows[0]["trial"] == json.loads(thaw("best", "several", "--json", "--storage", tmp_path).out)["trial"]
    )
    shown = thaw("best", "several", "--pareto", "--storage", tmp_path).out
    assert "cost/parameters" in shown
    assert len(shown.splitlines()) == len(front) + 2

    run(spec_of(objectives=[]).model_copy(update={"name": "one"}), tmp_path, 2)
    refused = thaw("best", "one", "--pareto", "--storage", tmp_path)
    assert refused.code == 2
    assert "--pareto: sweep one has one objective, eval/accuracy" in refused.err


def test_auto_knows_several_objectives() -> None:
    several, one = spec_of().search.resolved(), spec_of(objectives=[]).search
    assert (several.sampler.type, several.scheduler.type) == ("nsga2", "none")
    assert one.resolved() == one
    chosen = spec_of(sampler="tpe", scheduler="asha").search
    assert chosen.resolved() == chosen


def test_a_trial_without_one_of_the_values_has_failed(tmp_path: Path) -> None:
    study = create(spec_of(), tmp_path).open()
    trial = study.ask()
    study.report(trial.number, Result(epochs=1, metrics={QUALITY.name: 0.5}))
    told = study.tell(trial.number, TrialState.COMPLETE)
    assert (told.state, told.error) == (
        TrialState.FAILED,
        "no finite value of eval/accuracy, cost/parameters",
    )


def test_latency_is_measured_where_it_is_an_objective() -> None:
    wanted = spec_of(objectives=[{"name": "cost/latency", "goal": "minimize"}])
    assert trial_settings(wanted, {}, 0).training.measure_latency
    assert not trial_settings(spec_of(), {}, 0).training.measure_latency


def test_objectives_that_make_no_sense_are_refused() -> None:
    names = ["cost/latenci", "eval/accuracy", "cost/seconds", "cost/seconds"]
    with pytest.raises(SpecError) as caught:
        spec_of(objectives=[{"name": name, "goal": "minimize"} for name in names], sampler="gp")
    assert caught.value.problems == (
        "search.objectives[0].name: unknown cost 'cost/latenci'; did you mean cost/latency?",
        "search.objectives[1].name: eval/accuracy is there already; remove one",
        "search.objectives[3].name: cost/seconds is there already; remove one",
        "search.sampler.type: gp goes by search.metric alone; with search.objectives use auto, tpe, nsga2, "
        "qmc, random, grid",
    )
    with pytest.raises(SpecError, match=r"search\.metric\.name: cost/seconds is a cost; put it under"):
        spec_of(metric={"name": "cost/seconds", "goal": "minimize"}, objectives=[])
