"""Budgets, in virtual time: what was used is in the ledger, and no limit is overrun by much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.budget import Meter, Sitting, Usage, describe, regret_bound, spent, stagnation, usage
from search.config import BudgetConfig, SamplerConfig
from search.driver import Driver
from search.life import SweepState, Wanted, state_of
from search.problems import SpecError
from search.records import Result, TrialRecord, TrialState
from search.schedulers.fifo import Fifo
from search.space import suggest
from search.spec import parse
from search.study import Study
from search.trackers import NoTracker
from search.watch import Watch
from training.reporter import Evaluation

METRIC = "eval/accuracy"
RAW: dict[str, Any] = {
    "name": "sweep",
    "model": {"name": "some/model"},
    "data": {"train": "a", "validation": "b"},
    "parameters": {"learning_rate": {"min": 1e-5, "max": 1e-1}},
    "search": {"metric": {"name": METRIC, "goal": "maximize"}},
}
SPACE = parse(RAW).space
INTERVAL_S = 600.0  # between two evaluations of a trial
EVALUATIONS = 4


@dataclass
class World:
    """A clock, and a cluster whose nodes are counted."""

    now: float = 0.0
    nodes: int = 1

    def driver(self, directory: Path, budget: BudgetConfig, *, trials: int = 20, gpus: float = 0.0) -> Driver:
        study = Study.open(
            directory / "study.journal",
            name="sweep",
            suggest=partial(suggest, SPACE),
            metric=METRIC,
            goal="maximize",
            sampler=SamplerConfig(type="random"),
            seed=3,
        )
        meter = Meter(lambda: {"big": self.nodes}, clock=lambda: self.now)
        return Driver(
            study=study,
            scheduler=Fifo(),
            tracker=NoTracker(),
            trials=trials,
            keep=1,
            directory=directory,
            sweep_id="id",
            describe=lambda record: {},
            gpus=gpus,
            budget=Watch(study, budget=budget, prices={"big": 3.0}, meter=meter),
        )

    def run(
        self,
        driver: Driver,
        *,
        until: float = float("inf"),
        value: Callable[[TrialRecord], float] = lambda trial: trial.params["learning_rate"],
    ) -> None:
        """Two trials at a time; cut off at `until`, as by a kill."""
        running: list[tuple[float, int]] = []
        while self.now < until:
            while len(running) < 2 and (trial := driver.next_trial()) is not None:
                running.append((self.now + INTERVAL_S, trial.number))
            if not running:
                break
            running.sort()
            self.now, number = running.pop(0)
            record = driver.study.trial(number)
            epochs = record.epochs + 1
            evaluation = Evaluation(
                step=round(epochs),
                examples=round(epochs),
                epochs=epochs,
                phase="full",
                metrics={METRIC: value(record)},
                checkpoint=str(driver.study.path.parent / "none"),
                seconds=epochs * INTERVAL_S,
                last=epochs == EVALUATIONS,
            )
            decision = driver.evaluated(number, evaluation)
            if evaluation.last or decision == "stop":
                driver.ended(number)
            else:
                running.append((self.now + INTERVAL_S, number))
        if self.now < until:
            driver.finish()


@pytest.mark.parametrize(
    ("budget", "gpus", "limit_s"),
    [
        (BudgetConfig(hours=2.0), 0.0, 7200),
        (BudgetConfig(gpu_hours=8.0), 2.0, 7200),  # two trials of two GPUs each
        (BudgetConfig(cost=6.0), 0.0, 7200),  # one node at 3 an hour
        (BudgetConfig(hours=1.1, cost=100.0), 0.0, 1.1 * 3600),
    ],
)
def test_no_budget_is_overrun_by_more_than_an_evaluation(
    tmp_path: Path, budget: BudgetConfig, gpus: float, limit_s: float
) -> None:
    world = World()
    driver = world.driver(tmp_path, budget, gpus=gpus)
    world.run(driver)
    assert limit_s <= world.now <= limit_s + INTERVAL_S
    trials = driver.records()
    assert len(trials) < 20
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    assert any(t.state is TrialState.PRUNED for t in trials) or limit_s % (EVALUATIONS * INTERVAL_S) == 0
    assert driver.life.wanted is Wanted.HALT
    assert driver.life.reason.startswith("search.budget.")
    assert state_of(driver.life, trials, 20, driven=False) is SweepState.STOPPED


@pytest.mark.parametrize("cut_s", [900.0, 2500.0, 4200.0])
def test_what_was_used_survives_a_kill(tmp_path: Path, cut_s: float) -> None:
    world = World(nodes=2)
    budget = BudgetConfig(hours=2.0)
    world.run(world.driver(tmp_path, budget), until=cut_s)
    killed_at = world.now
    world.now += 50_000  # nobody works on it
    driver = world.driver(tmp_path, budget)
    world.run(driver)
    worked_s = world.now - 50_000
    assert 7200 - INTERVAL_S <= worked_s <= 7200 + INTERVAL_S + (killed_at % INTERVAL_S)
    used = usage(driver.records(), driver.study.sittings, {"big": 3.0})
    assert len(driver.study.sittings) == 2
    assert used.hours == pytest.approx(worked_s / 3600, abs=INTERVAL_S / 3600)
    assert used.cost == pytest.approx(2 * 3.0 * used.hours)


def test_asking_while_nothing_happens_writes_next_to_nothing(tmp_path: Path) -> None:
    """Ray Tune asks ten times a second for a trial that is not to come before another one has ended."""
    world = World()
    driver = world.driver(tmp_path, BudgetConfig(hours=1.0), trials=1)
    trial = driver.next_trial()
    assert trial is not None
    journal = tmp_path / "study.journal"
    before = len(journal.read_bytes().splitlines())
    for _ in range(600):
        world.now += 0.1
        assert driver.next_trial() is None
    written = len(journal.read_bytes().splitlines()) - before
    assert 6 <= written <= 60 / 5 + 1
    assert driver.study.sittings[0].seconds == pytest.approx(world.now, abs=5.1)
    world.now = 3600.0  # the limit goes by what is known here, entered or not
    driver.next_trial()
    assert driver.life.wanted is Wanted.HALT


def test_a_larger_budget_lets_it_go_on(tmp_path: Path) -> None:
    world = World()
    world.run(world.driver(tmp_path, BudgetConfig(hours=1.0)))
    spent_at = len(world.driver(tmp_path, BudgetConfig()).records())
    same = world.driver(tmp_path, BudgetConfig(hours=1.0))
    same.study.live(type(same.life)())  # as `resume` does
    assert same.next_trial() is None  # nothing starts on a budget that is used up
    more = world.driver(tmp_path, BudgetConfig(hours=2.0))
    more.study.live(type(more.life)())
    world.run(more)
    assert len(more.records()) > spent_at
    assert 7200 <= world.now <= 7200 + INTERVAL_S


def test_patience_lets_running_trials_finish(tmp_path: Path) -> None:
    world = World()
    driver = world.driver(tmp_path, BudgetConfig(patience=4))
    world.run(driver, value=lambda trial: 0.9 if trial.number == 2 else 0.5)
    trials = driver.records()
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert 7 <= len(trials) <= 8  # four after the third, and the one that ran beside the last
    assert driver.life.wanted is Wanted.DRAIN
    assert "no better trial among the last 4" in driver.life.reason


def record(number: int, value: float | None, state: TrialState = TrialState.COMPLETE) -> TrialRecord:
    results = () if value is None else (Result(epochs=1, metrics={METRIC: value}),)
    return TrialRecord(number=number, state=state, params={}, seed=0, results=results)


def test_stagnation() -> None:
    assert stagnation([], METRIC, "maximize") == 0
    trials = [record(0, 0.5), record(1, 0.6), record(2, 0.6), record(3, None, TrialState.INFEASIBLE)]
    assert stagnation(trials, METRIC, "maximize") == 2
    assert stagnation(trials, METRIC, "minimize") == 3
    trials += [record(4, None, TrialState.FAILED), record(5, 0.1, TrialState.RUNNING)]
    assert stagnation(trials, METRIC, "maximize") == 2  # neither says anything
    assert stagnation([*trials, record(6, 0.7)], METRIC, "maximize") == 0


def test_min_improvement_ends_a_sweep_in_which_nothing_is_left_to_gain(tmp_path: Path) -> None:
    world = World()
    driver = world.driver(tmp_path, BudgetConfig(min_improvement=0.5), trials=60)
    world.run(driver, value=lambda trial: 0.5 + 1e-3 * trial.params["learning_rate"])
    assert 20 <= len(driver.records()) < 60
    assert driver.life.wanted is Wanted.DRAIN
    assert driver.life.reason.startswith("search.budget.min_improvement: no more than ")


def test_the_regret_bound_waits_for_twenty_trials() -> None:
    distribution = {"x": optuna.distributions.FloatDistribution(0, 1)}
    trials = [
        optuna.trial.create_trial(params={"x": i / 30}, distributions=distribution, value=i / 30)
        for i in range(30)
    ]
    assert regret_bound(trials[:19], "maximize", 0) is None
    bound = regret_bound(trials, "maximize", 0)
    assert bound is not None
    assert bound == regret_bound(trials, "maximize", 0)
    assert bound > 0


def test_usage_in_words() -> None:
    used = usage([], [Sitting(seconds=3600, node_seconds={"a": 7200, "b": 3600})], {"a": 1.0, "default": 5.0})
    assert used == Usage(hours=1.0, gpu_hours=0.0, cost=7.0)
    assert describe(used, BudgetConfig(cost=10.0)) == ["wall-clock 1h00m", "cost 7.00 of 10"]
    limit = spent(BudgetConfig(cost=7.0), used, [], METRIC, "maximize")
    assert limit is not None
    assert limit.reason == "search.budget.cost: 7 of 7 used"


def test_budgets_that_cannot_be_measured_are_refused() -> None:
    raw = {
        **RAW,
        "search": {**RAW["search"], "budget": {"cost": 5, "gpu_hours": 1, "hour": 2, "patience": 0}},
    }
    with pytest.raises(SpecError) as caught:
        parse(raw)
    assert caught.value.problems == (
        "search.budget.hour: unknown key; did you mean hours?",
        "search.budget.patience: must be >= 1, got 0",
    )
    raw["search"]["budget"] = {"cost": 5, "gpu_hours": 1}
    with pytest.raises(SpecError) as caught:
        parse(raw)
    assert caught.value.problems == (
        "search.budget.cost: needs resources.prices, such as {default: 1.5} an hour",
        "search.budget.gpu_hours: trials hold no GPU; use search.budget.hours",
    )
    raw["resources"] = {"prices": {"default": -1}}
    with pytest.raises(SpecError, match=r"resources\.prices\.default: must be >= 0, got -1"):
        parse(raw)
