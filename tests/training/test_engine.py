"""What an engine does besides the mathematics: loss scales, masters, buckets, and what it leaves behind."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import deepspeed
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.training.conftest import BLOCKS, Crew, assert_same, attach, tiny_model
from tests.training.engines import GROWING, STAGES, batch_of, depth_of, drive, settings
from training import optim, suffix
from training.blocks import Blocks
from training.engine import compute_dtype, engine
from training.suffix import Weights
from training.team import Team
from training.zero import effective_stage


@pytest.mark.parametrize(
    ("stage", "precision", "workers", "effective"),
    [
        *((stage, "fp32", 2, stage) for stage in range(4)),
        *((stage, "bf16", 2, stage) for stage in range(4)),
        *((stage, precision, 1, 0) for stage in range(3) for precision in ("fp32", "bf16")),
        *((3, precision, 1, 3) for precision in ("fp32", "bf16")),
        # DeepSpeed's stage 0 forgets to scale the loss in fp16.
        (0, "fp16", 1, 1),
        (0, "fp16", 2, 1),
        (2, "fp16", 1, 2),
    ],
)
def test_effective_stage(stage: int, precision: str, workers: int, effective: int) -> None:
    assert effective_stage(settings(stage, precision), workers) == effective


def test_zero_3_leaves_torch_as_it_was(team: Team) -> None:
    """DeepSpeed's own linear layer, which rounds otherwise, would stay for all trials to come."""
    linear = torch.nn.functional.linear
    drive(team, GROWING[:1], settings(3), 1)
    assert torch.nn.functional.linear is linear


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_skips_a_step_that_overflows_and_carries_its_scale(team: Team, stage: int) -> None:
    blocks = Blocks(tiny_model())
    phase, training = GROWING[0], settings(stage, "fp16")

    def start(scaler: dict[str, float] | None) -> Any:
        module = suffix.build(phase, blocks, {}, dropout=0.0)
        shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        groups = optim.groups(shapes, blocks=blocks, shapes=shapes, ages={}, training=training)
        return engine(
            module, groups=groups, weights={}, slots={}, training=training, team=team, scaler=scaler
        )

    prefix = blocks.prefix(BLOCKS, torch.float16)
    inputs, labels = batch_of(0)
    with start({"cur_scale": 1024.0}) as live:
        before = live.weights()
        for _ in range(2):  # DeepSpeed forgives the first
            loss = cross_entropy(live(**attach(prefix, inputs)).float(), labels) * math.inf
            live.backward(loss, last=True)
            live.step(1.0)
        assert live.skipped_steps == 2
        assert live.loss_scale == 512.0
        assert_same(live.weights(), before)
        assert {slot.steps for slot in live.slots().values()} == {0}
        scaler = live.scaler
    # Not the scale alone: DeepSpeed counts what it forgives, and the steps since it last overflowed.
    assert scaler == {"cur_scale": 512.0, "cur_hysteresis": 1, "cur_iter": 2, "last_overflow_iter": 1}
    with start(scaler) as live:
        assert live.scaler == scaler
        live.backward(cross_entropy(live(**attach(prefix, inputs)).float(), labels), last=True)
        live.step(1.0)
        assert live.skipped_steps == 0
        assert {slot.steps for slot in live.slots().values()} == {1}


@pytest.mark.parametrize("stage", STAGES)
def test_masters_start_from_fp32_values_whatever_the_module_is_in(team: Team, stage: int) -> None:
    blocks = Blocks(tiny_model())
    training = settings(stage, "bf16")
    own = {name: tensor + 1e-5 for name, tensor in Weights(blocks, {}).items() if depth_of(name) < 0}
    module = suffix.build(GROWING[0], blocks, own, dropout=None).to(torch.bfloat16)
    shapes = {name: tensor.shape for name, tensor in own.items()}
    groups = optim.groups(shapes, blocks=blocks, shapes=shapes, ages={}, training=training)
    with engine(module, groups=groups, weights=own, slots={}, training=training, team=team) as live:
        assert_same(live.weights(), own)


def test_alone_in_bf16_a_gradient_that_is_no_number_shows(team: Team) -> None:
    """As in fp32: bf16 has its range, so nothing overflows that another step would mend."""
    blocks = Blocks(tiny_model())
    for precision in ("fp32", "bf16"):
        training = settings(2, precision)
        module = suffix.build(GROWING[0], blocks, {}, dropout=None)
        shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        groups = optim.groups(shapes, blocks=blocks, shapes=shapes, ages={}, training=training)
        prefix = blocks.prefix(BLOCKS, compute_dtype(precision))
        inputs, labels = batch_of(0)
        with engine(module, groups=groups, weights={}, slots={}, training=training, team=team) as live:
            live.backward(cross_entropy(live(**attach(prefix, inputs)).float(), labels) * math.nan, last=True)
            live.step(1.0)
            assert live.skipped_steps == 0
            assert not any(tensor.isfinite().all() for tensor in live.weights().values())


def test_buckets_of_odd_sizes(pair: Crew) -> None:
    """Three classes: an odd number of thawed elements, which ZeRO-1 and 2 refuse as a bucket."""
    pair.run(drive_three_classes)


def drive_three_classes(team: Team) -> None:
    blocks = Blocks(tiny_model(num_labels=3, hidden_size=8, intermediate_size=16))
    for stage in STAGES:
        training = settings(stage)
        module = suffix.build(GROWING[0], blocks, {}, dropout=None)
        shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        assert sum(shape.numel() for shape in shapes.values()) % 2
        groups = optim.groups(shapes, blocks=blocks, shapes=shapes, ages={}, training=training)
        with engine(module, groups=groups, weights={}, slots={}, training=training, team=team) as live:
            assert_same(live.weights(), {name: Weights(blocks, {})[name] for name in shapes})


def test_an_engine_is_closed_whatever_happens(team: Team) -> None:
    blocks = Blocks(tiny_model())
    training = settings()
    module = suffix.build(GROWING[2], blocks, {}, dropout=None)
    alive = weakref.ref(module)
    shapes = {name: p.shape for name, p in module.named_parameters()}
    groups = optim.groups(shapes, blocks=blocks, shapes=shapes, ages={}, training=training)

    def fail(module: Any) -> None:
        with engine(module, groups=groups, weights={}, slots={}, training=training, team=team):
            raise KeyError("something else")

    with pytest.raises(KeyError, match="something else") as caught:
        fail(module)
    caught.value.__traceback__ = None
    del module, caught
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_alone_no_gradient_is_copied_to_be_averaged(
    precision: str, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed would lay them all end to end for it, and copy them back."""
    reduced: list[int] = []
    real = deepspeed.comm.all_reduce
    monkeypatch.setattr(
        deepspeed.comm, "all_reduce", lambda t, *a, **kw: reduced.append(t.numel()) or real(t, *a, **kw)
    )
    training = settings(2, precision)
    blocks = Blocks(tiny_model())
    module = suffix.build(GROWING[2], blocks, {}, dropout=0.0)
    named = dict(module.named_parameters())
    groups = optim.groups(
        named, blocks=blocks, shapes={n: p.shape for n, p in named.items()}, ages={}, training=training
    )
    with engine(module, groups=groups, weights={}, slots={}, training=training, team=team) as live:
        inputs, labels = batch_of(0)
        live.backward(cross_entropy(live(**inputs).float(), labels), last=True)
        live.step(1.0)
    assert reduced == []


@pytest.mark.parametrize("stage", [0, 3])
def test_evaluation_keeps_nothing_for_autograd(stage: int, team: Team) -> None:
    """At stage 3 in the weaker way: what is gathered there stays, and trains."""
    training, phase, blocks = settings(stage), GROWING[2], Blocks(tiny_model())
    module = suffix.build(phase, blocks, {}, dropout=0.0)
    named = dict(module.named_parameters())
    shapes = {name: parameter.shape for name, parameter in named.items()}
    groups = optim.groups(named, blocks=blocks, shapes=shapes, ages={}, training=training)
    with engine(module, groups=groups, weights={}, slots={}, training=training, team=team) as live:
        inputs, labels = batch_of(0)
        found = live.evaluated(**inputs)
        assert found.is_inference() == (stage < 3)
        assert not found.requires_grad
        live.backward(cross_entropy(live(**inputs), labels), last=True)
        live.step(1.0)


def test_nothing_is_compiled_for_a_collective() -> None:
    """DeepSpeed's own all-reduce through shared memory takes a compiler, and minutes, at the first step."""
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
