"""The contract of every sampler in the table, and what TPE is for."""

from __future__ import annotations

import math
import statistics
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints

import optuna
import pytest

from search.config import SamplerConfig
from search.samplers import SAMPLERS, make_sampler
from search.study import Result, Study, TrialState


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    params: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
        "schedule": trial.suggest_categorical("schedule", ["head", "top"]),
    }
    if params["schedule"] == "top":
        params["depth"] = trial.suggest_int("depth", 1, 6)
    return params


def run(path: Path, sampler: SamplerConfig, trials: int, seed: int = 0, limit: float = math.inf) -> Study:
    """Trials with a known best; a learning rate above `limit` is infeasible."""
    study = Study.open(
        path, name="s", suggest=suggest, metric="loss", goal="minimize", sampler=sampler, seed=seed
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sampler: Any = SamplerConfig(type=name)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = run(tmp_path / "a", sampler, 25)
    again, other = run(tmp_path / "b", sampler, 25), run(tmp_path / "c", sampler, 25, seed=1)
    for trial in first.trials():
        assert 1e-5 <= trial.params["learning_rate"] <= 1e-2
        assert ("depth" in trial.params) == (trial.params["schedule"] == "top")
    assert len({trial.params["learning_rate"] for trial in first.trials()}) == 25
    assert first.trials() == again.trials()
    assert [t.params for t in first.trials()] != [t.params for t in other.trials()]
    assert capfd.readouterr() == ("", ""), "samplers keep quiet"


def test_unknown_sampler() -> None:
    with pytest.raises(ValueError, match="must be one of tpe, random, got 'magic'"):
        make_sampler(SamplerConfig(type="magic"), 0)  # type: ignore[arg-type]


def test_tpe_learns_after_its_startup(tmp_path: Path) -> None:
    def late_losses(sampler: SamplerConfig) -> float:
        losses = []
        for seed in range(3):
            trials = run(tmp_path / f"{sampler.type}-{seed}", sampler, 40, seed=seed).trials()
            losses += [t.results[0].metrics["loss"] for t in trials[20:]]
        return statistics.median(losses)

    assert late_losses(SamplerConfig(type="tpe")) < 0.6 * late_losses(SamplerConfig(type="random"))


def test_startup_trials_are_random(tmp_path: Path) -> None:
    all_random = run(tmp_path / "a", SamplerConfig(type="tpe", startup_trials=30), 30).trials()
    default = run(tmp_path / "b", SamplerConfig(type="tpe"), 30).trials()
    assert [t.params for t in all_random[:10]] == [t.params for t in default[:10]]
    assert [t.params for t in all_random[10:]] != [t.params for t in default[10:]]


def test_tpe_learns_what_is_infeasible(tmp_path: Path) -> None:
    shares = []
    for seed in range(3):
        # Half the space (in log) does not fit.
        trials = run(tmp_path / str(seed), SamplerConfig(type="tpe"), 60, seed, limit=10**-3.5).trials()
        shares.append(sum(t.state is TrialState.INFEASIBLE for t in trials) / 60)
    assert statistics.mean(shares) <= 0.35


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
