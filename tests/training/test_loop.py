"""Whole trials on the tiny model."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import Crew, Killed, MakeTrial, Recorder, assert_same, largest_difference, plain
from tests.training.reference import reference
from training import checkpoint, loop, optim
from training.checkpoint import CheckpointError, State
from training.config import LimitConfig, PhaseConfig, TrialConfig, UnfreezingConfig, ZeroConfig
from training.loop import train
from training.reporter import Verdict
from training.rng import derive
from training.team import Team
from training.trial import Diverged
from training.workspace import Setting, Workspace

STEPS_PER_EPOCH = 6


def run(
    config: TrialConfig, workspace: Workspace, directory: Path, **recorder: Any
) -> tuple[State, Recorder]:
    """A trial to its end, or its death; its newest checkpoint and what it told."""
    told = Recorder(**recorder)
    with suppress(Killed):
        train(config, workspace=workspace, reporter=told, directory=directory)
    found = checkpoint.newest(directory, identity(config, workspace.open(config)))
    assert found is not None
    return found.state, told


def identity(config: TrialConfig, setting: Setting) -> checkpoint.Identity:
    return checkpoint.identity(config, model=setting.fingerprint, data=setting.data.fingerprint)


def start_of(config: TrialConfig, setting: Setting) -> dict[str, Tensor]:
    """All weights before the first step."""
    named = {name: tensor.detach().clone() for name, tensor in setting.blocks.model.named_parameters()}
    return named | setting.fresh_weights(config.seed)


def listed(*phases: tuple[float, list[Any]]) -> UnfreezingConfig:
    made = [PhaseConfig(start=start, thaw=thaw) for start, thaw in phases]
    return UnfreezingConfig(schedule="phases", phases=made)


SHRINKING = listed((0.0, ["head", 0, 1, 2]), (0.5, ["head", 2]), (1.0, ["head"]))
GROWING = listed((0.0, ["head"]), (0.5, ["head", 1, 2]), (1.0, ["all"]))
REFREEZING = listed((0.0, ["head", 0]), (0.5, [2]), (1.0, ["head", "embeddings"]))

EVERYTHING = {"head", "embeddings", 0, 1, 2}


@pytest.mark.parametrize(
    ("unfreezing", "units", "stage"),
    [
        (UnfreezingConfig(schedule="head"), {"head"}, 2),
        (UnfreezingConfig(schedule="top", depth=2), {"head", 1, 2}, 2),
        (UnfreezingConfig(schedule="gradual", depth=2), {"head", 1, 2}, 3),
        (UnfreezingConfig(schedule="full"), EVERYTHING, 2),
        (REFREEZING, {"head", "embeddings", 0, 2}, 2),
        (REFREEZING, {"head", "embeddings", 0, 2}, 3),
        (listed((0.0, [1])), {1}, 2),
        (listed((0.0, [1])), {1}, 3),
    ],
    ids=[
        "head",
        "top",
        "gradual-sharded",
        "full",
        "refreezing",
        "refreezing-sharded",
        "no-head",
        "no-head-sharded",
    ],
)
def test_only_what_is_thawed_moves(
    unfreezing: UnfreezingConfig,
    units: set[object],
    stage: int,
    make_trial: MakeTrial,
    workspace: Workspace,
    tmp_path: Path,
) -> None:
    config = make_trial(epochs=1.5, unfreezing=unfreezing, zero=ZeroConfig(stage=stage))  # type: ignore[arg-type]
    state, told = run(config, workspace, tmp_path)
    setting = workspace.open(config)
    start = start_of(config, setting)
    thawed = {name for name in start if setting.blocks.unit(name) in units}
    assert state.step == 9
    # The head is the trial's own from the start, trained or not.
    assert set(state.weights) == thawed | set(setting.fresh_names)
    assert set(state.slots) == thawed
    moved = {name for name, tensor in state.weights.items() if not torch.equal(tensor, start[name])}
    assert moved == thawed
    assert setting.touched() == []
    assert told.courses[0].resumed_step == 0
    assert [(item.step, item.epochs) for item in told.evaluations] == [(6, 1.0), (9, 1.5)]


def test_what_is_frozen_again_stays(make_trial: MakeTrial, workspace: Workspace, tmp_path: Path) -> None:
    config = make_trial(epochs=1.5, evaluations_per_epoch=2, unfreezing=REFREEZING)
    _, told = run(config, workspace, tmp_path)
    setting = workspace.open(config)
    stored = [
        checkpoint.load_weights(Path(item.checkpoint), setting.fingerprint) for item in told.evaluations
    ]
    assert [(item.step, item.phase) for item in told.evaluations] == [
        (3, "phase-1"),
        (6, "phase-2"),
        (9, "phase-3"),
    ]

    def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[object]:
        return {setting.blocks.unit(name) for name in b if name not in a or not torch.equal(a[name], b[name])}

    assert changed(start_of(config, setting), stored[0]) == {"head", 0}
    assert changed(stored[0], stored[1]) == {2}
    assert changed(stored[1], stored[2]) == {"head", "embeddings"}


def test_it_learns(make_trial: MakeTrial, workspace: Workspace, team: Team, tmp_path: Path) -> None:
    config = make_trial(epochs=10.0)
    config = replace(config, data=replace(config.data, validation=config.data.train))
    _, told = run(config, Workspace(team), tmp_path)
    assert told.evaluations[-1].metrics["eval/accuracy"] > 0.9
    assert told.losses[-1][1] < 0.3 * told.losses[0][1]


@pytest.mark.parametrize(
    ("unfreezing", "micro", "schedule", "decay", "ages"),
    [(GROWING, 3, "cosine", 0.5, {3, 6, 9}), (SHRINKING, 8, "linear", 1.0, {3, 6, 9})],
    ids=["growing", "shrinking"],
)
def test_agrees_with_plain_torch(
    unfreezing: UnfreezingConfig,
    micro: int,
    schedule: str,
    decay: float,
    ages: set[int],
    make_trial: MakeTrial,
    workspace: Workspace,
    tmp_path: Path,
) -> None:
    config = make_trial(
        epochs=1.5,
        micro_batch_size=micro,
        lr_schedule=schedule,
        layerwise_lr_decay=decay,
        adam_epsilon=1e-3,
        unfreezing=unfreezing,
    )
    state, _ = run(config, workspace, tmp_path)
    setting = workspace.open(config)
    _, expected = reference(config, setting)
    assert largest_difference(state.weights, {name: expected[name] for name in state.weights}) < 1e-6
    assert {slots.steps for slots in state.slots.values()} == ages


def test_learning_rates_fall_with_depth(make_trial: MakeTrial, workspace: Workspace, tmp_path: Path) -> None:
    config = make_trial(layerwise_lr_decay=0.1, weight_decay=0.0)
    state, told = run(config, workspace, tmp_path)
    setting = workspace.open(config)
    start = start_of(config, setting)

    def motion(unit: object) -> float:
        names = [name for name in start if setting.blocks.unit(name) == unit]
        return max(float((state.weights[name] - start[name]).abs().max()) for name in names)

    assert motion(2) > 4 * motion(1) > 16 * motion(0) > 64 * motion("embeddings")
    last = told.progress[-1].metrics
    assert last["train/learning_rate_lowest"] == pytest.approx(last["train/learning_rate"] / 1000)


def test_reports(make_trial: MakeTrial, workspace: Workspace, tmp_path: Path) -> None:
    config = make_trial(epochs=1.5, evaluations_per_epoch=2, log_every=2, unfreezing=GROWING)
    _, told = run(config, workspace, tmp_path)
    (course,) = told.courses
    assert [(item.name, item.start_epoch, item.thawed) for item in course.phases] == [
        ("phase-1", 0.0, "head"),
        ("phase-2", 0.5, "head + blocks 1-2"),
        ("phase-3", 1.0, "all"),
    ]
    assert course.data_fingerprint == workspace.open(config).data.fingerprint
    # Every second step, the first of a phase, and wherever it is evaluated.
    assert [item.step for item in told.progress] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert [item.examples for item in told.progress if item.step in (2, 6, 7)] == [16, 44, 52]
    assert [(item.step, item.examples, item.epochs, item.phase) for item in told.evaluations] == [
        (3, 24, 0.5, "phase-1"),
        (6, 44, 1.0, "phase-2"),
        (9, 68, 1.5, "phase-3"),
    ]
    assert set(told.evaluations[0].metrics) == {"eval/loss", "eval/accuracy", "eval/f1", "eval/matthews"}
    seconds = [item.seconds for item in told.evaluations]
    assert seconds == sorted(set(seconds))
    assert all(Path(item.checkpoint).is_dir() for item in told.evaluations)


def test_same_seed_same_trial_warm(make_trial: MakeTrial, workspace: Workspace, tmp_path: Path) -> None:
    config = plain(make_trial(epochs=1.5, unfreezing=GROWING, log_every=1))
    first, told = run(config, workspace, tmp_path / "first")
    # ZeRO-3 replaces parts of torch.
    sharded = replace(config, seed=6, training=replace(config.training, zero=ZeroConfig(stage=3)))
    other, told_other = run(sharded, workspace, tmp_path / "other")
    again, told_again = run(config, workspace, tmp_path / "again")
    assert told_again.losses == told.losses
    assert told_again.scores == told.scores
    assert_same(again.weights, first.weights)
    assert told_other.losses != told.losses
    assert largest_difference(other.weights, first.weights) > 1e-3


def run_there(team: Team, config: TrialConfig, directory: Path) -> tuple[State, list[Any], list[Any]]:
    state, told = run(config, Workspace(team), directory)
    return state, told.losses, told.scores


def test_same_seed_same_trial_cold(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, cold: Crew
) -> None:
    config = plain(make_trial(epochs=1.5, unfreezing=GROWING, log_every=1))
    warm, told = run(config, workspace, tmp_path / "warm")
    ((state, losses, scores),) = cold.run(run_there, config, tmp_path / "cold")
    assert losses == told.losses
    assert scores == told.scores
    assert_same(state.weights, warm.weights)


def test_evaluations_do_not_disturb_the_training(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    config = plain(make_trial(epochs=1.5, unfreezing=GROWING))
    often = replace(config, training=replace(config.training, evaluations_per_epoch=6, log_every=1))
    assert_same(
        run(config, workspace, tmp_path / "a")[0].weights, run(often, workspace, tmp_path / "b")[0].weights
    )


def test_dropout_of_a_trial(make_trial: MakeTrial, workspace: Workspace, tmp_path: Path) -> None:
    def weights(dropout: float | None) -> dict[str, Tensor]:
        config = make_trial(dropout=dropout, unfreezing=UnfreezingConfig(schedule="top"))
        return dict(run(config, workspace, tmp_path / f"{dropout}")[0].weights)

    found = [weights(dropout) for dropout in (0.0, 0.3, None)]
    assert largest_difference(found[0], found[1]) > 1e-3
    assert largest_difference(found[0], found[2]) > 1e-3
    assert largest_difference(found[1], found[2]) > 1e-3


def test_every_micro_batch_has_its_own_dropout(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    set_seed = Team.seed

    def noted(team: Team, seed: int) -> None:
        seeds.append(seed)
        set_seed(team, seed)

    monkeypatch.setattr(Team, "seed", noted)
    run(plain(make_trial(micro_batch_size=3)), workspace, tmp_path)
    # Five batches of 8 and one of 4, in parts of at most 3; rank 0 of 1.
    micros = [(step, index) for step in range(6) for index in range(3 if step < 5 else 2)]
    expected = [derive(5, "dropout", step, index, 0) for step, index in micros]
    assert [seed for seed in seeds if seed in expected] == expected
    assert len(set(expected)) == 17


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


def test_divergence(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(optim, "lr_factor", lambda step, **_: float("nan") if step == 2 else 1.0)
        with pytest.raises(Diverged, match=r"^the training loss is nan at step 6$"):
            train(make_trial(), workspace=workspace, reporter=Recorder(), directory=tmp_path / "bad")
    assert not list((tmp_path / "bad").glob("step-*"))
    # The workspace is as good as new.
    assert run(make_trial(), workspace, tmp_path / "good")[0].step == 6


WAITING = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")


@pytest.mark.parametrize("schedule", ["top", "full"])
def test_no_step_waits_for_the_device(
    schedule: str,
    make_trial: MakeTrial,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Losses are fetched in groups; nothing of ours reads a tensor in between, also with class weights."""
    in_step, waited = [False], []

    def watched(name: str, real: Any) -> Any:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_code
            if in_step[0] and f"{os.sep}training{os.sep}" in caller.co_filename:
                waited.append((name, caller.co_name))
            return real(tensor, *args, **kwargs)

        return call

    def part(real: Any) -> Any:
        def run(*args: Any) -> Any:
            in_step[0] = True
            try:
                return real(*args)
            finally:
                in_step[0] = False

        return run

    for name in WAITING:
        monkeypatch.setattr(Tensor, name, watched(name, getattr(Tensor, name)))
    for name in ("_gradients", "_update"):
        monkeypatch.setattr(loop, name, part(getattr(loop, name)))
    unfreezing = UnfreezingConfig(schedule=schedule)  # type: ignore[arg-type]
    config = make_trial(epochs=4.0, class_weights=[1.0, 2.0], unfreezing=unfreezing)
    _, told = run(config, workspace, tmp_path)
    # A phase proves itself at its first step: each tensor once, with a micro-batch or two.
    assert {caller for _, caller in waited} == {"see"}
    assert len(waited) <= 60
    assert len(told.losses) < told.evaluations[-1].step / 3


def test_seeding_a_step_leaves_nothing_behind(team: Team) -> None:
    """torch keeps a stack trace of each call for a CUDA that is not there."""
    queue = torch.cuda._queued_calls  # type: ignore[attr-defined]
    before = len(queue)
    team.seed(5)
    ours = torch.rand(3)
    assert len(queue) == before
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), ours)
