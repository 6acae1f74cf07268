"""Whole trials on the tiny model: what trains, and what is told of it."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import Crew, MakeTrial, Recorder, assert_same, largest_difference, plain
from tests.training.reference import reference
from tests.training.trials import GROWING, REFREEZING, SHRINKING, listed, run, run_there, start_of
from training import checkpoint, loop, optim
from training.config import UnfreezingConfig, ZeroConfig
from training.loop import train
from training.rng import derive
from training.team import Team
from training.trial import Diverged
from training.workspace import Workspace

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
            mine = threading.current_thread() is threading.main_thread()  # what is fetched ahead may wait
            if mine and in_step[0] and f"{os.sep}training{os.sep}" in caller.co_filename:
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
    for name in ("gradients", "_update"):
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
