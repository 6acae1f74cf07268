"""What a trained model costs its user, as each evaluation tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.conftest import BLOCKS, Killed, MakeTrial, Recorder
from training.config import UnfreezingConfig
from training.loop import train
from training.workspace import Workspace


@pytest.mark.parametrize("schedule", ["head", "top", "full"])
def test_an_evaluation_tells_what_the_model_costs(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, schedule: str
) -> None:
    trial = make_trial(unfreezing=UnfreezingConfig(schedule=schedule, depth=1), measure_latency=True)  # type: ignore[arg-type]
    recorder = Recorder()
    train(trial, workspace=workspace, reporter=recorder, directory=tmp_path)
    blocks = workspace.open(trial).blocks
    named = dict(blocks.model.named_parameters())
    units = {"head": {"head"}, "top": {"head", BLOCKS - 1}}.get(schedule)
    expected = sum(p.numel() for name, p in named.items() if units is None or blocks.unit(name) in units)
    (evaluation,) = recorder.evaluations
    assert evaluation.costs.keys() == {"cost/parameters", "cost/latency"}
    assert evaluation.costs["cost/parameters"] == expected
    assert 0 < evaluation.costs["cost/latency"] < 10_000


def test_costs_are_told_again_after_a_kill(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    trial = make_trial(evaluations_per_epoch=2, measure_latency=True)
    first, second = Recorder(die_at=1), Recorder()
    with pytest.raises(Killed):
        train(trial, workspace=workspace, reporter=first, directory=tmp_path)
    train(trial, workspace=workspace, reporter=second, directory=tmp_path)
    assert second.evaluations[0].costs == first.evaluations[0].costs


def test_latency_is_not_measured_for_nothing(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    recorder = Recorder()
    train(make_trial(), workspace=workspace, reporter=recorder, directory=tmp_path)
    assert recorder.evaluations[0].costs.keys() == {"cost/parameters"}
