"""Warm start: earlier sweeps' results are prior knowledge of the sampler, and no trials of the new sweep."""

from __future__ import annotations

import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from search.problems import SpecError
from search.records import Result, TrialRecord, TrialState
from search.samplers import SAMPLERS
from search.space import SearchSpace
from search.spec import SweepSpec, parse
from search.study import Study
from search.sweep import Sweep, create
from search.warm_start import gather, reconciled

METRIC = "eval/accuracy"
LR = {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-1}
PARAMETERS: dict[str, Any] = {
    "learning_rate": LR,
    "batch_size": {"values": [16, 32, 64]},
    "unfreezing.schedule": {"values": ["head", "top"]},
    "unfreezing.depth": {"min": 1, "max": 6, "when": {"unfreezing.schedule": "top"}},
}


def spec_of(name: str = "new", parameters: dict[str, Any] = PARAMETERS, **search: Any) -> SweepSpec:
    metric = {"name": METRIC, "goal": "maximize"}
    return parse(
        {
            "name": name,
            "model": {"name": "some/model"},
            "data": {"train": "a", "validation": "b"},
            "parameters": parameters,
            "search": {"metric": metric, "default_points": False, **search},
            "training": {"weight_decay": 0.5, "batch_size": 64},
        }
    )


def space_of(**parameters: Any) -> SearchSpace:
    return spec_of(parameters=parameters).space


def quality(trial: TrialRecord) -> float:
    return 1 - 0.2 * abs(math.log10(trial.params["learning_rate"]) + 3.5)


def run(study: Study, trials: int) -> list[TrialRecord]:
    for _ in range(trials):
        trial = study.ask()
        value = quality(trial)
        study.report(trial.number, Result(epochs=1, metrics={METRIC: value, "eval/loss": 1 - value}))
        if trial.number % 3 == 2:
            study.tell(trial.number, TrialState.PRUNED)
            continue
        study.report(trial.number, Result(epochs=2, metrics={METRIC: value, "eval/loss": 1 - value}))
        study.tell(trial.number, TrialState.COMPLETE)
    return study.trials()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an earlier sweep, `old`."""
    path = tmp_path_factory.mktemp("storage")
    run(create(spec_of("old", sampler="random"), path).open(), 24)
    return path


def test_settings_are_reconciled() -> None:
    settings = {"learning_rate": 1e-3, "batch_size": 32, "unfreezing.schedule": "head", "unfreezing.depth": 1}
    full = space_of(**PARAMETERS)
    assert reconciled(full, settings) == {
        "learning_rate": 1e-3,
        "batch_size": 32,
        "unfreezing.schedule": "head",  # and a head alone has no depth
    }
    assert reconciled(space_of(learning_rate=LR), settings) == {"learning_rate": 1e-3}
    fixed_there = space_of(learning_rate=LR, weight_decay={"min": 0.0, "max": 1.0})
    assert reconciled(fixed_there, {**settings, "weight_decay": 0.5}) == {
        "learning_rate": 1e-3,
        "weight_decay": 0.5,
    }
    narrower = space_of(learning_rate={"min": 2e-3, "max": 1e-2})
    assert reconciled(narrower, settings) is None
    assert reconciled(space_of(batch_size={"values": [16, 64]}), settings) is None
    assert reconciled(space_of(batch_size={"value": 16}), settings) is None  # it was trained otherwise


def test_an_overlapping_space_takes_what_it_could_draw(storage: Path) -> None:
    parameters = {
        "learning_rate": {**LR, "min": 1e-4},
        "batch_size": {"values": [32, 64, 128]},
        "weight_decay": {"min": 0.0, "max": 1.0},
    }
    (source,) = gather(spec_of(parameters=parameters, warm_start=["old"]), storage)
    old = Sweep(spec=spec_of("old"), directory=storage / "old").read().trials()
    inside = [t for t in old if t.params["learning_rate"] >= 1e-4 and t.params["batch_size"] > 16]
    assert 0 < len(inside) < len(old)
    assert (source.name, len(source.prior), source.outside) == ("old", len(inside), len(old) - len(inside))
    assert [trial["params"]["weight_decay"] for trial in source.prior] == [0.5] * len(inside)
    assert [trial["params"]["learning_rate"] for trial in source.prior] == [
        t.params["learning_rate"] for t in inside
    ]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])  # that one lists values
def test_every_sampler_takes_prior_knowledge_that_is_no_trial(
    storage: Path, tmp_path: Path, sampler: str
) -> None:
    sweep = Sweep(
        spec=spec_of(sampler=sampler, warm_start=[str(storage / "old")]), directory=tmp_path / "new"
    )
    study = sweep.open()
    assert study.trials() == []
    trials = run(study, 4)
    assert [t.number for t in trials] == [0, 1, 2, 3]
    assert sweep.read().best() in trials
    again = Sweep(spec=sweep.spec, directory=tmp_path / "again").open()
    assert run(again, 4) == trials


def test_it_begins_where_the_earlier_sweep_ended(storage: Path, tmp_path: Path) -> None:
    def first_trials(warm_start: list[str], seed: int) -> float:
        spec = spec_of(warm_start=warm_start, seed=seed, sampler="tpe")
        directory = tmp_path / f"{len(warm_start)}-{seed}"
        study = Sweep(spec=spec, directory=directory).open()
        return statistics.mean(quality(trial) for trial in run(study, 6))

    cold = [first_trials([], seed) for seed in range(6)]
    warm = [first_trials([str(storage / "old")], seed) for seed in range(6)]
    assert statistics.mean(warm) > statistics.mean(cold) + 0.05


def test_what_it_knows_is_in_its_ledger(storage: Path, tmp_path: Path) -> None:
    shutil.copytree(storage, tmp_path / "s")
    spec = spec_of(warm_start=["old"])
    whole = run(create(spec, tmp_path / "s").open(), 6)
    other = tmp_path / "t"
    shutil.copytree(storage, other)
    sweep = create(spec, other)
    run(sweep.open(), 2)
    shutil.rmtree(other / "old")  # resumed, it needs the earlier sweep no more
    run(sweep.open(), 4)
    assert sweep.read().trials() == whole


def test_sweeps_that_tell_nothing_are_refused(storage: Path) -> None:
    other = spec_of(warm_start=["old", "odl", "/nowhere/else"])
    with pytest.raises(SpecError) as caught:
        gather(other, storage)
    assert caught.value.problems == (
        f"search.warm_start[1]: there is no sweep 'odl' in {storage}; did you mean old?",
        "search.warm_start[2]: there is no sweep 'else' in /nowhere; it holds none, so check --storage, "
        "or start one with `run`",
    )
    judged = spec_of(warm_start=["old"], metric={"name": "eval/loss", "goal": "minimize"})
    with pytest.raises(SpecError) as caught:
        create(judged, storage)
    assert caught.value.problems == (
        "search.warm_start[0]: old was judged by eval/accuracy (maximize), this sweep is by eval/loss "
        "(minimize); give one with the same metric",
    )
    assert not (storage / "new").exists()
