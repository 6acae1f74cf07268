"""The contract of every sampler in the table, and what TPE is for."""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import optuna
import pytest

from search.config import SamplerConfig
from search.samplers import SAMPLERS, SpaceExhausted, Suggest, make_sampler
from search.samplers.cube import Cube
from search.samplers.history import Reader
from search.study import Result, Study, TrialState


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    params: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
        "schedule": trial.suggest_categorical("schedule", ["head", "top"]),
    }
    if params["schedule"] == "top":
        params["depth"] = trial.suggest_int("depth", 1, 6)
    return params


def run(
    path: Path,
    sampler: SamplerConfig,
    trials: int,
    seed: int = 0,
    limit: float = math.inf,
    space: Suggest = suggest,
) -> Study:
    """Trials with a known best; a learning rate above `limit` is infeasible."""
    study = Study.open(
        path, name="s", suggest=space, metric="loss", goal="minimize", sampler=sampler, seed=seed
    )
    for _ in range(trials):
        trial = study.ask()
        if trial.params["learning_rate"] > limit:
            study.tell(trial.number, TrialState.INFEASIBLE, "does not fit")
            continue
        loss = abs(math.log10(trial.params["learning_rate"]) + 4) + 0.1 * trial.params.get("depth", 3)
        study.report(trial.number, Result(epochs=1, metrics={"loss": loss}))
        study.tell(trial.number, TrialState.PRUNED if trial.number % 2 else TrialState.COMPLETE)
    return study


def test_the_table_is_what_the_sweep_file_takes() -> None:
    assert set(SAMPLERS) == set(get_args(get_type_hints(SamplerConfig)["type"]))


def grid_space(trial: optuna.Trial) -> dict[str, Any]:
    params: dict[str, Any] = {
        "learning_rate": trial.suggest_categorical("learning_rate", [1e-5, 1e-4, 1e-3]),
        "schedule": trial.suggest_categorical("schedule", ["head", "top"]),
    }
    if params["schedule"] == "top":
        params["depth"] = trial.suggest_int("depth", 1, 6)
    return params


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {"sampler": SamplerConfig(type=name)}  # type: ignore[arg-type]
    if name == "grid":
        settings["space"] = grid_space
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = run(tmp_path / "a", trials=18, **settings)
    again, other = (
        run(tmp_path / "b", trials=18, **settings),
        run(tmp_path / "c", trials=18, seed=1, **settings),
    )
    for trial in first.trials():
        assert 1e-5 <= trial.params["learning_rate"] <= 1e-2
        assert ("depth" in trial.params) == (trial.params["schedule"] == "top")
    assert len({tuple(trial.params.items()) for trial in first.trials()}) == 18
    assert first.trials() == again.trials()
    if name != "grid":
        assert [t.params for t in first.trials()] != [t.params for t in other.trials()]
    assert capfd.readouterr() == ("", ""), "samplers keep quiet"
    stored = (tmp_path / "a").read_text()
    assert "pickle" not in stored
    assert "cma:" not in stored


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "grid"])
def test_a_resumed_sweep_draws_what_the_whole_one_does(name: str, tmp_path: Path) -> None:
    sampler = SamplerConfig(type=name, startup_trials=4)  # type: ignore[arg-type]
    whole = run(tmp_path / "a", sampler, 14)
    for trials in (5, 6, 3):
        study = run(tmp_path / "b", sampler, trials)
    assert study.trials() == whole.trials()


def test_unknown_sampler() -> None:
    with pytest.raises(ValueError, match=r"must be one of auto, tpe, .*, got 'magic'"):
        make_sampler(SamplerConfig(type="magic"), 0, suggest)  # type: ignore[arg-type]


def test_grid_tries_everything_once_and_then_ends(tmp_path: Path) -> None:
    study = run(tmp_path / "a", SamplerConfig(type="grid"), 21, space=grid_space)
    assert len({tuple(trial.params.items()) for trial in study.trials()}) == 3 * (1 + 6)
    with pytest.raises(SpaceExhausted):
        study.ask()


def test_grid_refuses_what_has_no_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"grid tries every value, and parameters\.learning_rate has no end"):
        run(tmp_path / "a", SamplerConfig(type="grid"), 1)
    assert not (tmp_path / "a").exists()


def test_qmc_spreads_more_evenly_than_chance(tmp_path: Path) -> None:
    def gap(name: str) -> float:
        gaps = []
        for seed in range(5):
            sampler = SamplerConfig(type=name)  # type: ignore[arg-type]
            trials = run(tmp_path / f"{name}-{seed}", sampler, 32, seed).trials()
            rates = sorted(math.log10(t.params["learning_rate"]) for t in trials)
            gaps.append(max(b - a for a, b in itertools.pairwise([-5, *rates, -2])))
        return statistics.median(gaps)

    assert gap("qmc") < 0.6 * gap("random")


def test_what_a_reader_remembers_is_what_another_one_reads(tmp_path: Path) -> None:
    study = run(tmp_path / "a", SamplerConfig(type="random"), 6)
    cube = Cube(suggest)
    remembers = Reader(cube)

    def check(running: int, farthest: int) -> None:
        found, anew = (reader.read(study._study, -1) for reader in (remembers, Reader(cube)))
        for name in ("points", "farthest", "best", "values", "bad", "running"):
            np.testing.assert_array_equal(getattr(found, name), getattr(anew, name))
        assert (found.running.sum(), found.farthest.max()) == (running, farthest)

    check(0, 10_000)
    number = study.ask().number
    check(1, 10_000)
    study.report(number, Result(epochs=2, metrics={"loss": 1.0}))
    check(1, 20_000)
    study.rule(number, "pause", "test")
    check(0, 20_000)
    study.rule(number, "promote", "test")
    study.report(number, Result(epochs=3, metrics={"loss": 0.5}))
    check(1, 30_000)
    study.tell(number, TrialState.COMPLETE)
    check(0, 30_000)


LEARNERS = ["auto", "tpe", "gp", "cmaes", "nsga2", "bohb"]


def test_learners_are_all_but_those_that_disregard_results() -> None:
    assert set(LEARNERS) == set(SAMPLERS) - {"qmc", "random", "grid"}


@pytest.mark.parametrize("name", LEARNERS)
def test_learns(name: str, tmp_path: Path) -> None:
    def late_loss(name: str) -> float:
        losses = []
        for seed in range(3):
            sampler = SamplerConfig(type=name)  # type: ignore[arg-type]
            trials = run(tmp_path / f"{name}-{seed}", sampler, 40, seed=seed).trials()
            losses += [t.results[0].metrics["loss"] for t in trials[25:]]
        return statistics.median(losses)

    assert late_loss(name) < 0.9 * late_loss("random")


@pytest.mark.parametrize("name", LEARNERS)
def test_learns_what_is_infeasible(name: str, tmp_path: Path) -> None:
    shares = []
    for seed in range(3):
        sampler = SamplerConfig(type=name)  # type: ignore[arg-type]
        # Half the space (in log) does not fit.
        trials = run(tmp_path / str(seed), sampler, 60, seed, limit=10**-3.5).trials()
        shares.append(sum(t.state is TrialState.INFEASIBLE for t in trials) / 60)
    assert statistics.median(shares) <= 0.35


def test_startup_trials_are_random(tmp_path: Path) -> None:
    all_random = run(tmp_path / "a", SamplerConfig(type="tpe", startup_trials=30), 30).trials()
    default = run(tmp_path / "b", SamplerConfig(type="tpe"), 30).trials()
    assert [t.params for t in all_random[:10]] == [t.params for t in default[:10]]
    assert [t.params for t in all_random[10:]] != [t.params for t in default[10:]]


def test_tpe_keeps_clear_of_what_is_running(tmp_path: Path) -> None:
    def after(neighbour_runs: bool) -> Any:
        study = run(tmp_path / str(neighbour_runs), SamplerConfig(type="tpe"), 20)
        neighbour = study.ask().number
        if not neighbour_runs:
            study.tell(neighbour, TrialState.FAILED)  # which samplers ignore
        return study.ask().params

    assert after(neighbour_runs=True) != after(neighbour_runs=False)


def test_tpe_draws_conditional_parameters_with_the_others(tmp_path: Path) -> None:
    run(tmp_path / "journal", SamplerConfig(type="tpe"), 20).ask()
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(journal))
    drawn = "".join(str(value) for value in study.trials[-1].system_attrs.values())
    assert all(f'"{name}"' in drawn for name in ("learning_rate", "schedule", "depth"))
