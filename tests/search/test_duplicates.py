"""Duplicates: what makes trials the same, and what becomes of a draw that repeats one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.drawing import SpaceExhausted
from search.driver import Driver
from search.duplicates import _MATTERS, Identity, untried
from search.records import Result, TrialRecord, TrialState
from search.schedulers.fifo import Fifo
from search.space import SearchSpace
from search.spec import LEAVES, SweepSpec, parse
from search.study import Study
from search.sweep import Sweep, is_exhausted, is_finished
from search.trackers import NoTracker
from training.config import TrainingConfig, UnfreezingConfig
from training.schedules import phases

METRIC = "eval/accuracy"
DISCRETE: dict[str, Any] = {
    "batch_size": {"values": [16, 32]},
    "unfreezing.schedule": {"values": ["head", "top"]},
    "unfreezing.depth": {"min": 1, "max": 3, "when": {"unfreezing.schedule": "top"}},
}
POINTS = 8  # 2 batch sizes x (head, or top with three depths)


def spec_of(parameters: dict[str, Any] = DISCRETE, **search: Any) -> SweepSpec:
    raw = {
        "name": "sweep",
        "model": {"name": "some/model"},
        "data": {"train": "a", "validation": "b"},
        "parameters": parameters,
        "search": {"metric": {"name": METRIC, "goal": "maximize"}, "default_points": False, **search},
    }
    return parse(raw)


def identity_of(parameters: dict[str, Any], **training: Any) -> tuple[Identity, SearchSpace]:
    space = spec_of(parameters).space
    return Identity(space=space, training=TrainingConfig(**training)), space


def run(study: Study, trials: int, state: TrialState = TrialState.COMPLETE) -> list[TrialRecord]:
    """Ask and tell up to `trials`, until the space is exhausted."""
    while len(study.trials()) < trials:
        try:
            trial = study.ask()
        except SpaceExhausted:
            break
        if not trial.state.finished:
            value = trial.params["batch_size"] / 100 + trial.params.get("unfreezing.depth", 0) / 10
            study.report(trial.number, Result(epochs=1, metrics={METRIC: value}, checkpoint="x", seconds=9))
            study.tell(trial.number, state)
    return study.trials()


def test_settings_that_mean_nothing_tell_no_trials_apart() -> None:
    depth = {"unfreezing.schedule": {"values": ["head", "top"]}, "unfreezing.depth": {"min": 1, "max": 6}}
    identity, _ = identity_of(depth)
    head = [{"unfreezing.schedule": "head", "unfreezing.depth": d} for d in (1, 2)]
    top = [{"unfreezing.schedule": "top", "unfreezing.depth": d} for d in (1, 2)]
    assert identity(head[0]) == identity(head[1])
    assert len({identity(v) for v in [*head, *top]}) == 3
    momentum = {"momentum": {"min": 0.1, "max": 0.9}, "batch_size": {"values": [16]}}
    for optimizer, same in (("adamw", True), ("sgd", False)):
        identity, _ = identity_of(momentum, optimizer=optimizer)
        assert (identity({"momentum": 0.1}) == identity({"momentum": 0.2})) is same


@pytest.mark.parametrize("schedule", ["head", "full", "chain-thaw"])
def test_a_depth_that_counts_for_nothing_changes_no_phase(schedule: Any) -> None:
    planned = [
        phases(UnfreezingConfig(schedule=schedule, depth=d, interval=i, points=None), 6, 3.0, 0)
        for d, i in ((1, 0.25), (4, 0.5))
    ]
    assert planned[0] == planned[1]


def test_numbers_are_compared_as_the_space_gives_them() -> None:
    identity, _ = identity_of(
        {"learning_rate": {"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.1}}
    )
    assert identity({"learning_rate": 0.3}) == identity({"learning_rate": 0.1 * 3})
    identity, _ = identity_of({"batch_size": {"values": [16, 32]}})
    assert identity({"batch_size": 16}) == identity({"batch_size": 16, "unfreezing.depth": 2})


def test_what_is_left_of_a_discrete_space() -> None:
    identity, space = identity_of(DISCRETE)
    everything = untried(space, identity, ())
    assert everything is not None
    assert len(everything) == POINTS
    known = [identity(values) for values in everything[:5]]
    assert untried(space, identity, known) == everything[5:]
    assert untried(spec_of({"learning_rate": {"min": 0.1, "max": 0.2}}).space, identity, ()) is None


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_redrawn_until_the_space_is_exhausted(tmp_path: Path, sampler: str) -> None:
    sweep = Sweep(spec=spec_of(sampler=sampler, trials=50), directory=tmp_path)
    trials = run(sweep.open(), 50)
    assert len(trials) == POINTS
    identity = Identity(space=sweep.spec.space, training=sweep.spec.training)
    assert len({identity(t.params) for t in trials}) == POINTS
    assert is_finished(sweep)
    assert not is_exhausted(sweep.spec, trials[:-1])
    assert any(t.user_attrs.get("redrawn") for t in sweep.read()._frozen())  # the ledger says so
    with pytest.raises(SpaceExhausted):
        sweep.open().ask()


def test_a_failed_trial_is_no_reason_not_to_try_again(tmp_path: Path) -> None:
    study = Sweep(spec=spec_of({"batch_size": {"values": [16, 32]}}), directory=tmp_path).open()
    run(study, 2, TrialState.FAILED)
    assert len({t.params["batch_size"] for t in run(study, 4)[2:]}) == 2
    with pytest.raises(SpaceExhausted):
        study.ask()


def test_reused(tmp_path: Path) -> None:
    study = Sweep(spec=spec_of(duplicates="reuse", sampler="random"), directory=tmp_path).open()
    trials = run(study, 30)
    assert len(trials) == 30
    reused = [t for t in trials if t.same_as is not None]
    assert len(trials) - len(reused) <= POINTS
    for trial in reused:
        original = trials[trial.same_as]  # type: ignore[index]
        assert original.same_as is None
        assert original.number < trial.number
        assert (trial.params, trial.state) == (original.params, original.state)
        assert [r.metrics for r in trial.results] == [r.metrics for r in original.results]
        assert (trial.seconds, trial.checkpoint) == (0.0, None)  # it cost nothing and owns no file
    best = study.best()
    assert best is not None
    assert best.same_as is None


@pytest.mark.parametrize("duplicates", ["redraw", "reuse"])
def test_the_driver_runs_no_known_trial_and_ends_in_time(tmp_path: Path, duplicates: str) -> None:
    sweep = Sweep(spec=spec_of(duplicates=duplicates, sampler="random"), directory=tmp_path)
    study = sweep.open()
    driver = Driver(
        study=study,
        scheduler=Fifo(),
        tracker=NoTracker(),
        trials=30,
        keep=1,
        directory=tmp_path,
        sweep_id="id",
        describe=lambda record: {},
    )
    ran = []
    while (trial := driver.next_trial()) is not None:
        ran.append(trial)
        study.report(trial.number, Result(epochs=1, metrics={METRIC: 0.5}))
        driver.ended(trial.number)
    assert all(not t.state.finished for t in ran)
    assert len(ran) <= POINTS
    assert driver.exhausted is (duplicates == "redraw")
    assert len(driver.records()) == (POINTS if duplicates == "redraw" else 30)


def test_allowed(tmp_path: Path) -> None:
    study = Sweep(spec=spec_of(duplicates="allow", sampler="random"), directory=tmp_path).open()
    trials = run(study, 20)
    assert len(trials) == 20
    assert all(t.same_as is None for t in trials)


@pytest.mark.parametrize(("duplicates", "times"), [("allow", 3), ("redraw", 1), ("reuse", 1)])
def test_a_point_is_tried_as_often_as_it_is_given_where_that_is_allowed(
    tmp_path: Path, duplicates: str, times: int
) -> None:
    point = {"batch_size": 16, "unfreezing.schedule": "head"}
    spec = spec_of(duplicates=duplicates, points=[point] * 3, sampler="random")
    ours = [t for t in run(Sweep(spec=spec, directory=tmp_path).open(), 3) if t.same_as is None]
    assert [t.params == point for t in ours] == [number < times for number in range(len(ours))]
    assert len({t.seed for t in ours}) == len(ours) >= times


def test_a_running_trial_is_not_drawn_again(tmp_path: Path) -> None:
    sweep = Sweep(spec=spec_of(duplicates="reuse"), directory=tmp_path)
    study = sweep.open()
    identity = Identity(space=sweep.spec.space, training=sweep.spec.training)
    assert len({identity(study.ask().params) for _ in range(POINTS)}) == POINTS
    with pytest.raises(SpaceExhausted):
        study.ask()


def test_a_resumed_sweep_draws_the_same(tmp_path: Path) -> None:
    spec = spec_of(sampler="tpe")
    whole = run(Sweep(spec=spec, directory=tmp_path / "a").open(), POINTS)
    for count in range(1, POINTS + 1):
        resumed = run(Sweep(spec=spec, directory=tmp_path / "b").open(), count)
    assert resumed == whole


def test_every_path_of_the_rules_is_a_setting() -> None:
    assert set(_MATTERS) | {other for other, _ in _MATTERS.values()} <= LEAVES.keys()
