"""Memory that runs out, wherever it does: nothing of the trial is lost, and its mathematics stays."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import Crew, MakeTrial, Recorder, assert_same, largest_difference
from tests.training.test_resilience import ON_CPU, ON_GPU, SETTINGS
from tests.training.trials import SHRINKING, run
from training import engine as engines
from training import sizes
from training.config import TrialConfig, ZeroConfig
from training.engine import Engine
from training.loop import train
from training.prefix import clear
from training.prefix.compute import Recipe
from training.probe import largest
from training.sizes import Sizes, smaller, tighter
from training.team import Team
from training.trial import Infeasible, OutOfMemory
from training.workspace import Workspace

CALL = Engine.__call__


def test_in_an_evaluation(
    make_trial: MakeTrial, workspace: Workspace, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is repeated with smaller batches; no step is, and the micro-batch stays."""
    config = make_trial(**SETTINGS)
    expected, told = run(config, workspace, tmp_path / "enough")
    asked: list[int] = []

    def call(self: Engine, **inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            asked.append(inputs["attention_mask"].numel())
            if asked[-1] > 150:
                raise ON_GPU
        return CALL(self, **inputs)

    monkeypatch.setattr(Engine, "__call__", call)
    mine = Workspace(team)
    state, told_here = run(config, mine, tmp_path / "short")
    # Of the two evaluations the first is in the second phase, the second in the third.
    assert len([tokens for tokens in asked if tokens > 150]) == 2 * 4
    assert told_here.losses == told.losses
    assert_same(state.weights, expected.weights)
    for (step, ours), (at, theirs) in zip(told_here.scores, told.scores, strict=True):
        assert step == at
        assert ours == pytest.approx(theirs, abs=1e-5)
    for known in mine.open(config).limits.values():
        assert known == Sizes(micro_batch=8, evaluation_tokens=128)
    assert sorted(path.name for path in (tmp_path / "short").iterdir()) == ["step-00000006", "step-00000009"]


def test_in_an_evaluation_of_one_example(
    make_trial: MakeTrial, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(self: Engine, **inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise ON_CPU
        return CALL(self, **inputs)

    monkeypatch.setattr(Engine, "__call__", call)
    with pytest.raises(Infeasible, match=r"needs about \d+ MB"):
        train(make_trial(), workspace=Workspace(team), reporter=Recorder(), directory=tmp_path)


def scarce(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> list[int]:
    """Let those calls of `deepspeed.initialize`, counted from 1, run out of memory; all calls."""
    initialize, calls = engines.deepspeed.initialize, []

    def attempt(**settings: Any) -> Any:
        calls.append(len(calls) + 1)
        if fails(calls[-1]):
            raise ON_GPU
        return initialize(**settings)

    monkeypatch.setattr(engines.deepspeed, "initialize", attempt)
    return calls


def test_while_an_engine_is_made(
    make_trial: MakeTrial, workspace: Workspace, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it may be what the gang holds to save time, which it then lets go of."""
    config = make_trial(**SETTINGS)
    expected, told = run(config, workspace, tmp_path / "enough")
    with monkeypatch.context() as patch:
        calls = scarce(patch, lambda call: call == 2)
        mine = Workspace(team)
        state, told_here = run(config, mine, tmp_path / "short")
    assert calls == [1, 2, 3, 4]
    assert mine.open(config).limits == {}
    assert told_here.losses == told.losses
    assert_same(state.weights, expected.weights)
    scarce(monkeypatch, lambda call: call >= 2)
    message = r"phase phase-2 does not fit in memory .* a worker needs about \d+ MB"
    with pytest.raises(Infeasible, match=message):
        train(config, workspace=Workspace(team), reporter=Recorder(), directory=tmp_path / "none")


def make_engine_there(team: Team, config: TrialConfig, directory: Path) -> tuple[str, Sizes | None]:
    with pytest.MonkeyPatch.context() as patch:
        scarce(patch, lambda call: True)
        with pytest.raises(OutOfMemory) as error:
            train(config, workspace=Workspace(team), reporter=Recorder(), directory=directory)
    return str(error.value), error.value.smaller


def test_while_an_engine_is_made_on_two_workers(make_trial: MakeTrial, tmp_path: Path, pair: Crew) -> None:
    (message, fewer), other = pair.run(make_engine_there, make_trial(), tmp_path)
    assert fewer is None
    assert "a worker needs about" in message
    assert other == (message, fewer)


def test_while_the_store_is_filled(
    make_trial: MakeTrial, workspace: Workspace, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No smaller micro-batch would help: it is tried again where what was only held is given back."""
    config = make_trial(**SETTINGS)
    expected, told = run(config, workspace, tmp_path / "enough")
    compute, calls = Recipe.run, itertools.count(1)
    init, close = Engine.__init__, Engine.close
    live: list[Engine] = []

    def computed(self: Recipe, batch: Any) -> Any:
        assert not live  # it has the device to itself
        if next(calls) == 3:
            raise ON_GPU
        return compute(self, batch)

    def fresh(self: Engine, *args: Any, **settings: Any) -> None:
        live.append(self)
        init(self, *args, **settings)

    def closed(self: Engine) -> None:
        live.remove(self)
        close(self)

    monkeypatch.setattr(Recipe, "run", computed)
    monkeypatch.setattr(Engine, "__init__", fresh)
    monkeypatch.setattr(Engine, "close", closed)
    mine = Workspace(team, tmp_path / "cache")
    try:
        state, told_here = run(config, mine, tmp_path / "short")
    finally:
        clear(tmp_path / "cache")
    assert mine.open(config).limits == {}
    assert told_here.losses == told.losses
    assert_same(state.weights, expected.weights)
    assert next(calls) > 10


@pytest.mark.parametrize("log_every", [1, 10])
def test_in_the_optimizer_when_weights_have_moved(
    log_every: int,
    make_trial: MakeTrial,
    workspace: Workspace,
    team: Team,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No step is done twice: it goes back to where the weights are known."""
    settings: Any = {**SETTINGS, "log_every": log_every}
    config = make_trial(micro_batch_size=4, **settings)
    expected, _ = run(config, workspace, tmp_path / "enough")
    step, calls = Engine.step, itertools.count(1)

    def fail(self: Engine, lr_factor: float) -> None:
        step(self, lr_factor)
        if next(calls) == 8:  # the second of the third phase
            raise ON_GPU

    monkeypatch.setattr(Engine, "step", fail)
    mine = Workspace(team)
    state, told_here = run(config, mine, tmp_path / "short")
    assert largest_difference(state.weights, expected.weights) < 1e-6
    assert {name: slots.steps for name, slots in state.slots.items()} == {
        name: slots.steps for name, slots in expected.slots.items()
    }
    assert [known.micro_batch for known in mine.open(config).limits.values()] == [2]
    if log_every == 1:  # the seventh is told again
        assert [at for at, _ in told_here.losses] == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9]


def total(told: Recorder) -> float:
    """Sum of the losses of all steps, from the means that were reported."""
    steps = [0, *(step for step, _ in told.losses)]
    counts = [after - before for before, after in itertools.pairwise(steps)]
    return sum(count * loss for count, (_, loss) in zip(counts, told.losses, strict=True))


def test_losses_that_were_not_reported_yet_are_not_lost(
    make_trial: MakeTrial, workspace: Workspace, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_trial(micro_batch_size=4, epochs=2.0, log_every=10)
    _, told = run(config, workspace, tmp_path / "enough")
    backward, calls = Engine.backward, itertools.count(1)

    def fail(self: Engine, loss: Tensor, *, last: bool) -> None:
        backward(self, loss, last=last)
        if next(calls) == 8:  # of the fourth step; the second and third are not reported
            raise ON_CPU

    monkeypatch.setattr(Engine, "backward", fail)
    _, told_here = run(config, Workspace(team), tmp_path / "short")
    assert [step for step, _ in told.losses] == [1, 6, 10, 12]
    assert [step for step, _ in told_here.losses] == [1, 4, 6, 10, 12]
    assert total(told_here) == pytest.approx(total(told), abs=1e-4)


# Memory of a phase


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
)
def test_memory_of_a_phase_is_given_back_at_the_next(
    stage: int,
    precision: str,
    make_trial: MakeTrial,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When an engine is made, nothing is left of the one before: no parameter, gradient or moment."""
    alive: list[weakref.ref[Any]] = []
    init, step = Engine.__init__, Engine.step
    found: list[int] = []

    def fresh(self: Engine, *args: Any, **settings: Any) -> None:
        found.append(sum(reference() is not None for reference in alive))
        init(self, *args, **settings)
        alive.extend(weakref.ref(parameter) for parameter in self.module.parameters())
        alive.append(weakref.ref(self.module))

    def stepped(self: Engine, lr_factor: float) -> None:
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        holders = [*self.module.parameters(), *trained]
        alive.extend(weakref.ref(p.grad) for p in holders if p.grad is not None)
        alive.extend(weakref.ref(p) for p in trained)  # beside the module's own in bf16
        del trained, holders
        step(self, lr_factor)
        for state in self._optimizer.state.values():
            alive.extend(weakref.ref(value) for value in state.values() if isinstance(value, Tensor))

    monkeypatch.setattr(Engine, "__init__", fresh)
    monkeypatch.setattr(Engine, "step", stepped)
    settings: Any = {"precision": precision, "zero": ZeroConfig(stage=stage)}  # type: ignore[arg-type]
    run(make_trial(epochs=1.5, unfreezing=SHRINKING, **settings), workspace, tmp_path)
    assert len(alive) > 100
    assert found == [0, 0, 0]
    assert not [reference for reference in alive if reference() is not None]


# What to try next


def test_what_is_tried_after_memory_ran_out() -> None:
    start = Sizes(micro_batch=5, evaluation_tokens=100)
    assert smaller(start, "step", longest=40) == Sizes(micro_batch=2, evaluation_tokens=100)
    assert smaller(start, "update", longest=40) == Sizes(micro_batch=2, evaluation_tokens=100)
    assert smaller(start, "evaluation", longest=40) == Sizes(micro_batch=5, evaluation_tokens=50)
    assert smaller(start, "evaluation", longest=60) == Sizes(micro_batch=5, evaluation_tokens=60)
    assert smaller(start, "evaluation", longest=100) is None
    assert smaller(start, "engine", longest=40) is None
    assert smaller(Sizes(micro_batch=1, evaluation_tokens=100), "step", longest=40) is None
    other = Sizes(micro_batch=2, evaluation_tokens=200)
    assert tighter(start, other) == tighter(other, start) == Sizes(micro_batch=2, evaluation_tokens=100)
    assert tighter(start, None) == start


def test_what_is_remembered_is_remembered_for_what_it_depends_on(make_trial: MakeTrial) -> None:
    from training.schedules import Phase

    phase = Phase(name="top", start_epoch=0.0, blocks=(2,))
    others: list[dict[str, Any]] = [
        {"precision": "bf16"},
        {"zero": ZeroConfig(stage=3)},
        {"activation_checkpointing": True},
        {"optimizer": "sgd"},
    ]
    keys = {sizes.key(make_trial(**settings).training, phase, 2) for settings in ({}, *others)}
    keys.add(sizes.key(make_trial().training, phase, 1))
    assert len(keys) == 6
    assert sizes.key(make_trial(learning_rate=1.0, batch_size=1).training, phase, 2) in keys


@pytest.mark.parametrize(
    ("budget", "reach", "found", "tried"),
    [
        (1e9, 48, 64, [1, 2, 4, 8, 16, 32, 64]),  # up to what the batch asks for
        (1000.0, 4096, 64, [1, 2, 4, 8, 16, 32, 64]),  # 100 + 10 each: 128 would not fit, and is not tried
        (740.0, 4096, 64, [1, 2, 4, 8, 16, 32, 64]),
        (739.0, 4096, 32, [1, 2, 4, 8, 16, 32]),
        (50.0, 64, 1, [1]),
    ],
)
def test_the_search_for_a_micro_batch_runs_out_of_nothing(
    budget: float, reach: int, found: int, tried: list[int]
) -> None:
    calls: list[int] = []

    def peak(size: int) -> float:
        calls.append(size)
        return 100.0 + 10.0 * size

    assert largest(peak, reach=reach, budget=budget, example=12.0) == found
    assert calls == tried


def test_a_peak_that_jumps_ends_the_search() -> None:
    peaks = {1: 100.0, 2: 110.0, 4: 130.0, 8: float("inf")}
    assert largest(peaks.__getitem__, reach=64, budget=1000.0, example=10.0) == 4
    # One that does not grow, as an allocator rounds, does not.
    assert largest(lambda size: 100.0, reach=64, budget=200.0, example=10.0) == 64
