"""What a trial survives: too little memory, losses that are not finite; and how it ends early."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import Crew, MakeTrial, Recorder, assert_same, largest_difference
from tests.training.trials import GROWING, listed, run
from training import reports, sizes
from training.config import EarlyStoppingConfig, TrialConfig, ZeroConfig
from training.engine import Engine
from training.loop import train
from training.reporter import Verdict
from training.schedules import Phase
from training.sizes import Sizes
from training.tasks import TASKS
from training.team import Team
from training.trial import Diverged, Infeasible, OutOfMemory
from training.workspace import Workspace

ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
ON_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 GB")
TASK = type(TASKS["sequence-classification"])
LOSSES = TASK.losses


class Shortage:
    """Memory for the losses of `rows` examples at a time; keeps what was asked for."""

    def __init__(self, rows: int, error: RuntimeError = ON_GPU) -> None:
        self.rows = rows
        self.error = error
        self.asked: list[int] = []

    @property
    def errors(self) -> list[int]:
        return [rows for rows in self.asked if rows > self.rows]

    def losses(self, task: Any, logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
        self.asked.append(len(labels))
        if len(labels) > self.rows:
            raise self.error
        return LOSSES(task, logits, labels, **settings)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Shortage:
        monkeypatch.setattr(TASK, "losses", lambda task, *args, **kwargs: self.losses(task, *args, **kwargs))
        return self


SETTINGS: dict[str, Any] = {"epochs": 1.5, "unfreezing": GROWING, "adam_epsilon": 1e-3, "log_every": 1}


@pytest.mark.parametrize(
    ("error", "stage"), [(ON_GPU, 0), (ON_CPU, 0), (ON_GPU, 3)], ids=["gpu", "cpu", "sharded"]
)
def test_out_of_memory_halves_the_micro_batch(
    error: RuntimeError,
    stage: int,
    make_trial: MakeTrial,
    workspace: Workspace,
    team: Team,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**SETTINGS, "zero": ZeroConfig(stage=stage)}  # type: ignore[arg-type]
    expected, told = run(make_trial(micro_batch_size=2, **settings), workspace, tmp_path / "small")
    shortage = Shortage(3, error).install(monkeypatch)
    mine = Workspace(team)
    config = make_trial(**settings)
    state, told_here = run(config, mine, tmp_path / "short")
    # The same trial: in each of three phases 8, then 4 were too many.
    assert shortage.errors == [8, 4] * 3
    assert told_here.losses == told.losses
    assert told_here.scores == told.scores
    assert_same(state.weights, expected.weights)
    # What fits is remembered, for each boundary.
    limits = mine.open(config).limits
    assert [at.split(",")[0] for at in limits] == ["boundary 3", "boundary 1", "boundary -1"]
    assert {known.micro_batch for known in limits.values()} == {2}
    shortage.asked.clear()
    run(make_trial(seed=6, **settings), mine, tmp_path / "next")
    assert (shortage.errors, max(shortage.asked)) == ([], 2)


def test_out_of_memory_in_the_middle_of_a_step(
    make_trial: MakeTrial,
    workspace: Workspace,
    team: Team,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first micro-batch has left gradients; the step is done again, and all of it once."""
    config = make_trial(micro_batch_size=4, **SETTINGS)
    expected, told = run(config, workspace, tmp_path / "enough")
    backward, calls = Engine.backward, itertools.count(1)

    def fail(self: Engine, loss: Tensor, *, last: bool) -> None:
        backward(self, loss, last=last)
        if next(calls) == 9:  # the first half of the fifth step, the second of its phase
            raise ON_GPU

    monkeypatch.setattr(Engine, "backward", fail)
    mine = Workspace(team)
    state, told_here = run(config, mine, tmp_path / "short")
    ((at, known),) = mine.open(config).limits.items()
    assert (at.split(",")[0], known.micro_batch) == ("boundary 1", 2)
    assert [step for step, _ in told_here.losses] == [step for step, _ in told.losses]
    assert [loss for _, loss in told_here.losses] == pytest.approx(
        [loss for _, loss in told.losses], abs=1e-5
    )
    assert largest_difference(state.weights, expected.weights) < 1e-6
    steps = {name: slots.steps for name, slots in expected.slots.items()}
    assert {name: slots.steps for name, slots in state.slots.items()} == steps


def test_a_trial_that_does_not_fit_at_all(
    make_trial: MakeTrial, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortage = Shortage(0).install(monkeypatch)
    message = r"phase full does not fit in memory at a micro-batch of 1 example: a worker needs about \d+ MB"
    with pytest.raises(Infeasible, match=message):
        train(make_trial(), workspace=Workspace(team), reporter=Recorder(), directory=tmp_path)
    assert shortage.errors == [8, 4, 2, 1]


def test_other_errors_are_not_taken_for_it(
    make_trial: MakeTrial, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortage = Shortage(0, RuntimeError("a bug")).install(monkeypatch)
    with pytest.raises(RuntimeError, match="a bug"):
        train(make_trial(), workspace=Workspace(team), reporter=Recorder(), directory=tmp_path)
    assert shortage.errors == [8]


def test_a_limit_that_is_known_from_elsewhere(
    make_trial: MakeTrial, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Shortage(99).install(monkeypatch)
    config = make_trial(**SETTINGS)
    phase = Phase(name="phase-2", start_epoch=0.5, blocks=(1, 2))
    limits = {sizes.key(config.training, phase, 1): Sizes(micro_batch=2, evaluation_tokens=100)}
    train(config, workspace=Workspace(team), reporter=Recorder(), directory=tmp_path, limits=limits)
    # Only in the phase that it is known of: steps 4 to 6, the last of them of half a batch.
    assert seen.asked == [8] * 3 + [2] * (4 + 4 + 2) + [8] * 3


def run_short_there(team: Team, config: TrialConfig, directory: Path) -> Any:
    """What a rank that runs short says is to be tried next."""
    with pytest.MonkeyPatch.context() as patch:
        Shortage(3).install(patch)
        with pytest.raises(OutOfMemory, match="CUDA out of memory") as error:
            train(config, workspace=Workspace(team), reporter=Recorder(), directory=directory)
    return error.value.at, error.value.smaller


def test_out_of_memory_on_two_workers_is_for_their_gang(
    make_trial: MakeTrial, tmp_path: Path, pair: Crew
) -> None:
    """Another rank may wait in a collective by then, so nothing is repeated here."""
    config = make_trial()
    phase = Phase(name="full", start_epoch=0.0, blocks=(0, 1, 2), embeddings=True)
    half = Sizes(micro_batch=2, evaluation_tokens=2048)
    said = (sizes.key(config.training, phase, -1), half)
    assert pair.run(run_short_there, config, tmp_path) == [said, said]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`spoil(at, value)`: the losses of the steps `at`, counted from 1, are `value`, their gradients fine."""

    def patch(at: set[int], value: float) -> None:
        steps = itertools.count(1)

        def losses(task: Any, logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
            found = LOSSES(task, logits, labels, **settings)
            return found + value if next(steps) in at else found

        monkeypatch.setattr(TASK, "losses", losses)

    return patch


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("log_every", [1, 10])
def test_three_losses_in_a_row_that_are_not_finite_end_a_trial(
    log_every: int,
    value: float,
    spoil: Callable[..., None],
    make_trial: MakeTrial,
    workspace: Workspace,
    tmp_path: Path,
) -> None:
    config = make_trial(epochs=2.0, log_every=log_every)
    expected, _ = run(config, workspace, tmp_path / "healthy")
    spoil({3, 4, 7, 8, 10}, value)
    state, _ = run(config, workspace, tmp_path / "ill")
    assert_same(state.weights, expected.weights)
    spoil({3, 4, 5}, value)
    told = Recorder()
    with pytest.raises(Diverged) as error:
        train(config, workspace=workspace, reporter=told, directory=tmp_path / "dead")
    assert str(error.value) == f"the training loss is {value} at step 5"
    assert told.evaluations == []


def test_three_in_a_row_over_phases_count(
    spoil: Callable[..., None], make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    spoil({3, 4, 5}, float("nan"))  # the second phase begins with step 4
    with pytest.raises(Diverged):
        train(make_trial(**SETTINGS), workspace=workspace, reporter=Recorder(), directory=tmp_path)


def test_three_in_a_row_over_a_resume_count(
    spoil: Callable[..., None], make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    config = make_trial(evaluations_per_epoch=6, log_every=1)
    spoil({3, 4}, float("nan"))
    run(config, workspace, tmp_path, die_at=4)
    spoil({1}, float("nan"))  # of the process that takes it up: the fifth
    with pytest.raises(Diverged, match=r"^the training loss is nan at step 5$"):
        train(config, workspace=workspace, reporter=Recorder(), directory=tmp_path)


@pytest.mark.parametrize("stage", [1, 3])
def test_the_whole_state_of_a_loss_scale_survives_a_resume(
    stage: int, make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed forgives the first overflow and not the second, with a resume between them or not."""
    settings: dict[str, Any] = {"precision": "fp16", "zero": ZeroConfig(stage=stage)}  # type: ignore[arg-type]
    config = make_trial(evaluations_per_epoch=6, log_every=1, dropout=0.2, **settings)

    def overflow(at: set[int]) -> None:
        """The gradients of these steps, counted from 1, are infinite; the losses are not."""
        steps = itertools.count(1)

        def losses(task: Any, logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
            if next(steps) in at:
                logits.register_hook(lambda gradient: gradient * float("inf"))
            return LOSSES(task, logits, labels, **settings)

        monkeypatch.setattr(TASK, "losses", losses)

    overflow({2, 5})
    whole, told = run(config, workspace, tmp_path / "whole")
    assert whole.scaler is not None
    assert whole.scaler["cur_scale"] == 2.0**15
    overflow({2})
    run(config, workspace, tmp_path / "killed", die_at=3)
    overflow({2})
    resumed, after = run(config, workspace, tmp_path / "killed")
    assert after.courses[0].resumed_step == 3
    assert resumed.scaler == whole.scaler
    assert after.losses == told.losses[3:]
    assert_same(resumed.weights, whole.weights)
    for name, slots in resumed.slots.items():
        assert slots.steps == whole.slots[name].steps
        assert_same(slots.tensors, whole.slots[name].tensors)


def test_a_phase_in_which_every_step_overflows_breaks_no_proof(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = itertools.count(1)

    def losses(task: Any, logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
        if next(steps) <= 2:
            logits.register_hook(lambda gradient: gradient * float("inf"))
        return LOSSES(task, logits, labels, **settings)

    monkeypatch.setattr(TASK, "losses", losses)
    unfreezing = listed((0.0, ["head"]), (0.3, ["all"]))
    config = make_trial(precision="fp16", unfreezing=unfreezing, log_every=1)
    assert run(config, workspace, tmp_path)[0].step == 6


def rule(**settings: Any) -> EarlyStoppingConfig:
    return EarlyStoppingConfig(**{"metric": "eval/accuracy", "goal": "maximize", "patience": 2, **settings})


@pytest.mark.parametrize(
    ("early_stopping", "evaluations"),
    [
        (rule(), 5),
        (rule(patience=1), 3),
        (rule(patience=3), 6),
        (rule(goal="minimize"), 3),
        (rule(min_delta=0.15), 3),
        (rule(metric="eval/loss", goal="minimize"), 6),
        (rule(patience=None), 6),
    ],
)
def test_early_stopping(
    early_stopping: EarlyStoppingConfig,
    evaluations: int,
    make_trial: MakeTrial,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter((0.5, 0.6, 0.6, 0.65, 0.64, 0.65))
    if early_stopping.patience == 2 and early_stopping.goal == "maximize" and not early_stopping.min_delta:
        scores = iter((0.5, 0.6, 0.65, 0.6, 0.65, 0.7))  # to equal the best is no improvement
    losses = iter((6.0, 5.0, 4.0, 3.0, 2.0, 1.0))
    monkeypatch.setattr(
        reports, "evaluate", lambda *_, **__: {"eval/accuracy": next(scores), "eval/loss": next(losses)}
    )
    config = make_trial(epochs=3.0, evaluations_per_epoch=2, early_stopping=early_stopping)
    told = Recorder()
    # It ends of itself: nobody stopped it.
    assert train(config, workspace=workspace, reporter=told, directory=tmp_path) is Verdict.CONTINUE
    assert [item.step for item in told.evaluations] == [3 * (n + 1) for n in range(evaluations)]
    assert [item.last for item in told.evaluations] == [False] * (evaluations - 1) + [True]
    assert told.progress[-1].step == 3 * evaluations


@pytest.mark.parametrize("die_at", [1, 2, 3])
def test_early_stopping_survives_a_resume(
    die_at: int, make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    early_stopping = EarlyStoppingConfig(patience=2, min_delta=1e9)  # only the first counts as a gain
    # In the second of three phases.
    config = make_trial(
        epochs=2.0, evaluations_per_epoch=3, unfreezing=GROWING, early_stopping=early_stopping
    )
    whole, told = run(config, workspace, tmp_path / "whole")
    assert [(item.step, item.last) for item in told.evaluations] == [(2, False), (4, False), (6, True)]
    run(config, workspace, tmp_path / "killed", die_at=die_at)
    resumed, after = run(config, workspace, tmp_path / "killed")
    assert after.evaluations[0].step == 2 * die_at
    assert after.scores == told.scores[die_at - 1 :]
    assert [item.last for item in after.evaluations] == [False] * (3 - die_at) + [True]
    assert bool(after.progress) == (die_at < 3)
    assert_same(resumed.weights, whole.weights)
