"""A trial that stopped goes on, from the newest checkpoint that can be used and is its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import Crew, MakeTrial, Recorder, assert_same, largest_difference, plain
from tests.training.trials import GROWING, identity, listed, run, run_there
from training import checkpoint
from training.checkpoint import CheckpointError
from training.config import LimitConfig, TrialConfig, ZeroConfig
from training.loop import train
from training.reporter import Verdict
from training.team import Team
from training.workspace import Workspace


def halt_there(team: Team, config: TrialConfig, directory: Path) -> None:
    train(config, workspace=Workspace(team), reporter=Recorder(stop_at=2), directory=directory)


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_resume_on_another_number_of_workers(
    change: str, make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, pair: Crew
) -> None:
    config = make_trial(epochs=1.5, evaluations_per_epoch=2, unfreezing=GROWING, adam_epsilon=1e-3)
    sharded = replace(config, training=replace(config.training, zero=ZeroConfig(stage=3)))
    whole, told = run(config, workspace, tmp_path / "whole")
    if change == "fewer":
        pair.run(halt_there, sharded, tmp_path / "moved")
        shards = tmp_path / "moved" / "step-00000006"
        assert len(list(shards.glob("weights-*-of-00002.safetensors"))) == 2
        resumed, after = run(config, workspace, tmp_path / "moved")
        scores = after.scores
        assert after.courses[0].resumed_step == 6
    else:
        run(config, workspace, tmp_path / "moved", stop_at=2)
        (resumed, _, scores), (other, *_) = pair.run(run_there, sharded, tmp_path / "moved")
        assert_same(other.weights, resumed.weights)
    assert [step for step, _ in scores] == [6, 9]
    assert scores[-1][1] == pytest.approx(told.scores[-1][1], abs=1e-5)
    assert largest_difference(resumed.weights, whole.weights) < 1e-5
    assert {name: slots.steps for name, slots in resumed.slots.items()} == {
        name: slots.steps for name, slots in whole.slots.items()
    }


def test_stop(make_trial: MakeTrial, workspace: Workspace, tmp_path: Path) -> None:
    told = Recorder(stop_at=2)
    config = make_trial(epochs=5.0)
    assert train(config, workspace=workspace, reporter=told, directory=tmp_path) is Verdict.STOP
    assert [item.step for item in told.evaluations] == [6, 12]
    assert told.progress[-1].step == 12
    # Asked again about the same evaluation, and told to stop, it takes no step.
    again = Recorder(stop_at=1)
    assert train(config, workspace=workspace, reporter=again, directory=tmp_path) is Verdict.STOP
    assert ([item.step for item in again.evaluations], again.progress) == ([12], [])


def test_runs_to_its_end(make_trial: MakeTrial, workspace: Workspace, tmp_path: Path) -> None:
    config = make_trial()
    assert train(config, workspace=workspace, reporter=Recorder(), directory=tmp_path) is Verdict.CONTINUE
    # Once more: the last evaluation is told again, nothing is trained.
    told = Recorder()
    assert train(config, workspace=workspace, reporter=told, directory=tmp_path) is Verdict.CONTINUE
    assert (told.courses[0].resumed_step, told.progress, len(told.evaluations)) == (6, [], 1)


@pytest.mark.parametrize(
    ("die_at", "precision"),
    [(1, "fp32"), (2, "fp32"), (2, "bf16"), (3, "fp32")],
    ids=["mid-phase", "at-a-phase-change", "at-a-phase-change-bf16", "mid-last-phase"],
)
def test_resume(
    die_at: int, precision: str, make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    unfreezing = listed((0.0, ["head"]), (1.0, ["head", 1, 2]))
    config = plain(
        make_trial(
            epochs=2.0, evaluations_per_epoch=2, log_every=1, unfreezing=unfreezing, precision=precision
        )
    )
    whole, told = run(config, workspace, tmp_path / "whole")
    assert [(item.step, item.phase) for item in told.evaluations] == [
        (3, "phase-1"), (6, "phase-1"), (9, "phase-2"), (12, "phase-2"),
    ]  # fmt: skip
    _, before = run(config, workspace, tmp_path / "killed", die_at=die_at)
    resumed, after = run(config, workspace, tmp_path / "killed")
    at = 3 * die_at
    assert after.courses[0].resumed_step == at
    assert_same(resumed.weights, whole.weights)
    assert resumed.slots.keys() == whole.slots.keys()
    for name, slots in resumed.slots.items():
        assert slots.steps == whole.slots[name].steps
        assert_same(slots.tensors, whole.slots[name].tensors)
    assert before.losses + after.losses == told.losses
    # The evaluation that may have been lost is told again, the same; its seconds go on.
    assert after.evaluations[0] == before.evaluations[-1]
    assert before.scores[:-1] + after.scores == told.scores
    seconds = [item.seconds for item in after.evaluations]
    assert seconds == sorted(set(seconds))


def test_a_damaged_checkpoint_is_passed_over(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    config = plain(make_trial(epochs=1.5, evaluations_per_epoch=2, unfreezing=GROWING))
    whole, _ = run(config, workspace, tmp_path / "whole")
    run(config, workspace, tmp_path / "killed", die_at=2)
    newest = tmp_path / "killed" / "step-00000006" / "weights-00000-of-00001.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    resumed, told = run(config, workspace, tmp_path / "killed")
    assert told.courses[0].resumed_step == 3
    assert_same(resumed.weights, whole.weights)
    # With none that is whole the trial starts anew, and says so.
    for path in (tmp_path / "killed").glob("*/weights-*.safetensors"):
        path.write_bytes(b"")
    with pytest.warns(
        UserWarning, match="no usable checkpoint, so the trial starts anew: .* cut short or altered"
    ):
        resumed, told = run(config, workspace, tmp_path / "killed")
    assert told.courses[0].resumed_step == 0
    assert_same(resumed.weights, whole.weights)


def test_a_checkpoint_of_another_trial_is_refused(
    make_trial: MakeTrial, workspace: Workspace, team: Team, tmp_path: Path
) -> None:
    config = make_trial()
    run(config, workspace, tmp_path)
    mine = workspace.open(config)

    def message(other: TrialConfig) -> str:
        with pytest.raises(CheckpointError) as error:
            train(other, workspace=Workspace(team), reporter=Recorder(), directory=tmp_path)
        return str(error.value)

    at = tmp_path / "step-00000006"
    assert message(replace(config, seed=9)) == f"{at}: made with other settings"
    assert message(make_trial(learning_rate=1e-3)) == f"{at}: made with other settings"
    other_data = replace(config.data, limit=LimitConfig(train=40))
    assert message(replace(config, data=other_data)) == f"{at}: made with other data"
    with pytest.raises(CheckpointError, match="made with other model"):
        checkpoint.newest(tmp_path, replace(identity(config, mine), model="0"))
    # What does not change a trial's mathematics may change.
    neutral = replace(config.training, micro_batch_size=4, zero=ZeroConfig(stage=3), log_every=1)
    told = Recorder()
    train(replace(config, training=neutral), workspace=workspace, reporter=told, directory=tmp_path)
    assert told.courses[0].resumed_step == 6
