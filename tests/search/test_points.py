"""The points that are tried first: those of the file, then the customary setting of the model's family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.points import customary, first_points
from search.problems import SpecError
from search.records import Result, TrialState
from search.spec import SweepSpec, parse
from search.sweep import Sweep

PARAMETERS: dict[str, Any] = {
    "learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 3e-3},
    "batch_size": {"values": [16, 64, 128]},
    "unfreezing.schedule": {"values": ["head", "top", "full"]},
    "unfreezing.depth": {"min": 2, "max": 6, "when": {"unfreezing.schedule": "top"}},
    "weight_decay": {"distribution": "log_uniform_values", "min": 1e-3, "max": 1.0},
    "label_smoothing": {"values": [0.05, 0.1]},
}


def spec_of(
    directory: Path, parameters: dict[str, Any] = PARAMETERS, config: Any = None, **search: Any
) -> SweepSpec:
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    raw = {
        "name": "sweep",
        "model": {"name": str(directory)},
        "data": {"train": "a", "validation": "b"},
        "parameters": parameters,
        "search": {"metric": {"name": "eval/accuracy", "goal": "maximize"}, "seed": 1, **search},
    }
    return parse(raw)


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        ({"model_type": "bert", "hidden_size": 768}, 2e-5),
        ({"model_type": "camembert", "hidden_size": 768}, 1e-5),
        ({"model_type": "bert", "hidden_size": 384}, 1e-4),
        ({"model_type": "distilbert", "dim": 768}, 5e-5),
        ({"model_type": "unheard-of"}, 2e-5),
    ],
)
def test_the_family_decides_the_learning_rate(tmp_path: Path, config: Any, rate: float) -> None:
    assert customary(spec_of(tmp_path, config=config))["learning_rate"] == rate


def test_the_customary_point_is_as_near_as_the_space_comes(tmp_path: Path) -> None:
    point = customary(spec_of(tmp_path, config={"model_type": "bert", "hidden_size": 768}))
    assert point == {
        "learning_rate": 2e-5,
        "batch_size": 16,  # as far from 32 as 64 is, and first
        "unfreezing.schedule": "full",
        "weight_decay": 0.01,
    }  # a label smoothing of 0 is not near any choice, and `full` has no depth
    narrow = {
        "learning_rate": {"min": 1e-4, "max": 1e-3},
        "unfreezing.schedule": {"values": ["head"]},
        "batch_size": {"value": 8},
    }
    assert customary(spec_of(tmp_path, narrow)) == {
        "learning_rate": 1e-3,  # of a head alone
        "unfreezing.schedule": "head",
        "batch_size": 8,
    }


def test_points_come_first_and_in_order(tmp_path: Path) -> None:
    points = [{"learning_rate": 0.001, "unfreezing.schedule": "top"}, {"batch_size": 128}]
    spec = spec_of(tmp_path, config={"model_type": "bert", "hidden_size": 768}, points=points)
    study = Sweep(spec=spec, directory=tmp_path).open()
    drawn = []
    for _ in range(5):
        # As a resumed sweep does; what the file says by now counts for nothing.
        study = Sweep(spec=spec.model_copy(), directory=tmp_path).open()
        trial = study.ask()
        study.report(trial.number, Result(epochs=1, metrics={"eval/accuracy": 0.5}))
        study.tell(trial.number, TrialState.COMPLETE)
        drawn.append(dict(trial.params))
    assert drawn[0].items() >= points[0].items()
    assert 2 <= drawn[0]["unfreezing.depth"] <= 6  # what a point leaves out is drawn
    assert drawn[1]["batch_size"] == 128
    assert drawn[2].items() >= customary(spec).items()
    assert not any(d.items() >= customary(spec).items() for d in drawn[3:])
    assert len({d["learning_rate"] for d in drawn}) == 5


def test_a_point_that_is_known_already_is_not_tried_again(tmp_path: Path) -> None:
    parameters = {"batch_size": {"values": [16, 32, 64]}}
    spec = spec_of(tmp_path, parameters, points=[{"batch_size": 32}, {"batch_size": 64}])
    assert first_points(spec) == [{"batch_size": 32}, {"batch_size": 64}, {"batch_size": 32}]
    study = Sweep(spec=spec, directory=tmp_path).open()
    assert [study.ask().params["batch_size"] for _ in range(3)] == [32, 64, 16]


def test_without_default_points_the_sampler_begins(tmp_path: Path) -> None:
    assert first_points(spec_of(tmp_path, default_points=False)) == []


def test_points_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    points = [{"batch_size": 17, "epochs": 2}, {"learning_rate": 1}, {"unfreezing.depth": "deep"}]
    with pytest.raises(SpecError) as caught:
        spec_of(tmp_path, points=points)
    known = ", ".join(PARAMETERS)
    assert caught.value.problems == (
        "search.points[0].batch_size: must be one that `parameters` can draw (16, 64, 128), got 17",
        f"search.points[0].epochs: is not searched; `parameters` has {known}",
        "search.points[1].learning_rate: must be one that `parameters` can draw (1e-06 to 0.003), got 1",
        "search.points[2].unfreezing.depth: must be one that `parameters` can draw (2 to 6), got 'deep'",
    )
