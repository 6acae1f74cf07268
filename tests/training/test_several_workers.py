"""Trials of two workers: they train as one does, and all end alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import Crew, MakeTrial, Recorder, assert_same, largest_difference
from tests.training.trials import GROWING, run, run_there
from training.config import TrialConfig, ZeroConfig
from training.loop import train
from training.reporter import Verdict
from training.team import Team
from training.workspace import Workspace


def test_two_workers_train_as_one_does(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, pair: Crew
) -> None:
    config = make_trial(epochs=1.5, unfreezing=GROWING, log_every=1, adam_epsilon=1e-4)
    for stage in (2, 3):
        config = replace(config, training=replace(config.training, zero=ZeroConfig(stage=stage)))
        alone, told = run(config, workspace, tmp_path / f"alone-{stage}")
        (state, losses, scores), (other, *silence) = pair.run(run_there, config, tmp_path / f"pair-{stage}")
        assert [step for step, _ in losses] == [step for step, _ in told.losses]
        assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in told.losses], abs=1e-5)
        for (_, theirs), (_, ours) in zip(scores, told.scores, strict=True):
            assert theirs == pytest.approx(ours, abs=1e-5)
        assert largest_difference(state.weights, alone.weights) < 1e-5
        assert_same(other.weights, state.weights)
        assert silence == [[], []]


def refused_there(team: Team, config: TrialConfig, directory: Path, train_file: str) -> str:
    """What each of the ranks says of a trial of which worker 1 finds other data."""
    if team.rank == 1:
        config = replace(config, data=replace(config.data, train=train_file))
    with pytest.raises(ValueError, match=r"^data") as error:
        train(config, workspace=Workspace(team), reporter=Recorder(), directory=directory)
    return str(error.value)


def test_a_worker_that_has_other_data_ends_the_trial_for_all(
    make_trial: MakeTrial, tmp_path: Path, pair: Crew
) -> None:
    """Each reads them on its own machine; nobody waits in a collective for one that has left."""
    config = make_trial()
    first, second = pair.run(refused_there, config, tmp_path, str(tmp_path / "absent.jsonl"), timeout_s=60)
    assert first == f"{second} (on worker 1 of 2)"
    assert "absent.jsonl" in first
    other = pair.run(refused_there, config, tmp_path, config.data.validation, timeout_s=60)
    assert set(other) == {"data: worker 1 has read another data than worker 0; give what all nodes see alike"}


def stop_there(team: Team, config: TrialConfig, directory: Path) -> Verdict:
    return train(config, workspace=Workspace(team), reporter=Recorder(stop_at=1), directory=directory)


def test_a_verdict_stops_all_ranks(make_trial: MakeTrial, tmp_path: Path, pair: Crew) -> None:
    assert pair.run(stop_there, make_trial(epochs=3.0), tmp_path) == [Verdict.STOP, Verdict.STOP]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
