"""A schedule that is not kept fails the trial, and says which tensor and phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import MakeTrial, Recorder
from training import loop, optim
from training.config import PhaseConfig, TrainingConfig, TrialConfig, UnfreezingConfig
from training.engine import Engine
from training.optim import Group
from training.proof import BrokenProof, Witness, prove, step_sizes
from training.reporter import Verdict
from training.team import Team
from training.workspace import Workspace

FROZEN = "bert.encoder.layer.2.output.dense.weight"
THAWED = "bert.encoder.layer.1.output.dense.weight"


@pytest.fixture
def config(make_trial: MakeTrial) -> TrialConfig:
    phases = [PhaseConfig(start=0, thaw=["head"]), PhaseConfig(start=0.5, thaw=["head", 1])]
    return make_trial(epochs=2.0, unfreezing=UnfreezingConfig(schedule="phases", phases=phases))


@pytest.fixture
def own_workspace(team: Team) -> Workspace:
    return Workspace(team)


def after_step(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """`change(engine)` after every optimizer step."""
    step = Engine.step

    def step_and_change(self: Engine, lr_factor: float) -> None:
        step(self, lr_factor)
        with torch.no_grad():
            change(self)

    monkeypatch.setattr(Engine, "step", step_and_change)


def nudge(live: Engine) -> None:
    """Change one element of a frozen tensor in its last bit."""
    parameters = dict(live.module.named_parameters())
    if FROZEN in parameters:
        parameters[FROZEN][1, 2] = torch.nextafter(parameters[FROZEN][1, 2], torch.tensor(9.0))


def run(config: TrialConfig, workspace: Workspace, directory: Path, stop_at: int | None = None) -> Verdict:
    return loop.train(config, workspace=workspace, reporter=Recorder(stop_at=stop_at), directory=directory)


def message(config: TrialConfig, workspace: Workspace, directory: Path, stop_at: int | None = None) -> str:
    with pytest.raises(BrokenProof) as error:
        run(config, workspace, directory, stop_at)
    return str(error.value)


@pytest.mark.parametrize("stop_at", [None, 1])
def test_a_frozen_tensor_that_moves(
    stop_at: int | None,
    config: TrialConfig,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One bit is enough, and a trial that is stopped is held to its schedule too."""
    after_step(monkeypatch, nudge)
    assert message(config, workspace, tmp_path, stop_at) == f"phase phase-2: {FROZEN} moved though frozen"


@pytest.mark.parametrize("name", [THAWED, "classifier.weight"])
def test_a_thawed_tensor_without_optimizer(
    name: str, config: TrialConfig, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the trial has a value of its own for it, as for the new head, or not."""
    groups = optim.groups
    monkeypatch.setattr(
        optim, "groups", lambda names, **rest: groups([n for n in names if n != name], **rest)
    )
    phase = "phase-1" if name.startswith("classifier") else "phase-2"
    expected = f"phase {phase}: {name} has no optimizer state though thawed"
    assert message(config, workspace, tmp_path) == expected


def test_a_thawed_tensor_that_stands_still(
    config: TrialConfig, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start: dict[int, torch.Tensor] = {}

    def hold(live: Engine) -> None:
        parameters = dict(live.module.named_parameters())
        if THAWED in parameters:
            pretrained = workspace.open(config).blocks.model.get_parameter(THAWED)
            start.setdefault(id(live), pretrained.clone())
            parameters[THAWED].copy_(start[id(live)])

    after_step(monkeypatch, hold)
    expected = f"phase phase-2: {THAWED} got a gradient but did not move though thawed"
    assert message(config, workspace, tmp_path) == expected


@pytest.mark.parametrize("name", ["bert.embeddings.word_embeddings.weight", FROZEN, "classifier.bias"])
def test_pretrained_weights_that_are_written_to(
    name: str, config: TrialConfig, own_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = own_workspace.open(config).blocks.model
    after_step(monkeypatch, lambda _: model.get_parameter(name).view(-1)[0].add_(1e-3))
    assert message(config, own_workspace, tmp_path) == f"phase phase-1: the pretrained {name} was written to"


def test_after_a_broken_proof_the_next_trial_is_sound(
    config: TrialConfig, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        after_step(patch, nudge)
        assert "phase-2" in message(config, workspace, tmp_path / "broken")
    assert run(config, workspace, tmp_path / "sound") is Verdict.CONTINUE


def state(**tensors: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in tensors.items()}


def check(**changes: Any) -> None:
    settings: dict[str, Any] = {
        "phase": "p",
        "frozen": state(f=[1.0]).items(),
        "expected": state(f=[1.0]),
        "before": state(a=[1.0], b=[2.0]),
        "after": state(a=[1.5], b=[2.5], other=[0.0]),
        "with_gradient": {"a", "b"},
        "step_size": {"a": 0.1, "b": 0.1},
        "touched": [],
    }
    if (finding := prove(**{**settings, **changes})) is not None:
        raise BrokenProof(finding)


def test_what_passes() -> None:
    check()
    # Without a gradient nothing has to move.
    check(after=state(a=[1.0], b=[2.5]), with_gradient={"b"})
    # Nor where a step is below the rounding of the weights.
    check(after=state(a=[1.0], b=[2.5]), step_size={"a": 1e-9, "b": 0.1})
    # At a low precision frozen tensors are what the pretrained ones round to.
    check(frozen=[("f", torch.tensor([0.1], dtype=torch.bfloat16))], expected=state(f=[0.1]))


def test_many_names_are_cut_short() -> None:
    names = [f"t{i}" for i in range(5)]
    with pytest.raises(BrokenProof, match="phase p: t0, t1, t2 and 2 more moved though frozen"):
        check(
            frozen=[(name, torch.ones(1)) for name in names],
            expected={name: torch.zeros(1) for name in names},
        )


def test_not_a_number_counts_as_moved() -> None:
    with pytest.raises(BrokenProof, match="f moved"):
        check(frozen=state(f=[float("nan")]).items())
    # Weights that diverged before they froze have not moved since.
    check(frozen=state(f=[float("nan")]).items(), expected=state(f=[float("nan")]))


def test_witness() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[0].requires_grad_(False)
    witness = Witness(module)
    module[1](torch.zeros(1, 2)).sum().backward()  # no input: the gradient of the weight is zero
    assert witness.seen == {"1.bias"}
    module(torch.ones(1, 2)).sum().backward()
    assert witness.seen == {"1.weight", "1.bias", "2.weight", "2.bias"}
    witness.seen.clear()
    witness.settle()
    module(torch.ones(1, 2)).sum().backward()
    assert witness.seen == set()


def seen(**gradients: float) -> Witness:
    """A witness of one-element tensors that got these gradients."""
    module = torch.nn.ParameterDict({name: torch.zeros(1) for name in gradients})
    witness = Witness(module)
    sum(value * module[name].sum() for name, value in gradients.items()).backward()  # type: ignore[union-attr]
    return witness


def test_what_motion_is_expected() -> None:
    group = Group(names=("a", "b", "c", "d"), learning_rate=0.1, weight_decay=0.0, age=0)
    witness = seen(a=1.0, b=1e-7, c=1e-4)
    adam = step_sizes([group], 0.5, witness, TrainingConfig())
    assert adam["a"] == pytest.approx(0.05, rel=1e-3)
    assert adam["c"] == pytest.approx(0.05, rel=0.2)
    # Beside the largest gradient that of `b` may be rounding; `d` got none.
    assert adam["b"] == adam["d"] == 0.0
    # Adam's steps are small where its epsilon is large beside the gradient.
    assert step_sizes([group], 0.5, witness, TrainingConfig(adam_epsilon=1.0))["a"] < 1e-3
    # Those of SGD are as small as the gradient.
    sgd = step_sizes([group], 0.5, witness, TrainingConfig(optimizer="sgd"))
    assert 0 < sgd["c"] < 5e-6
    # Where every step was skipped nothing has moved.
    assert set(step_sizes([group], 0.0, witness, TrainingConfig()).values()) == {0.0}


def test_gradients_are_unscaled() -> None:
    layer = torch.nn.Linear(1, 1)
    witness = Witness(layer, loss_scale=1024.0)
    (layer(torch.ones(1, 1)).sum() * 1024.0).backward()
    assert witness.largest == {"weight": 1.0, "bias": 1.0}
