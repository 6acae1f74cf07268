"""The engine against plain torch: same mathematics at every ZeRO stage, across phase changes."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.training.conftest import (
    BLOCKS,
    VOCABULARY,
    Crew,
    assert_same,
    attach,
    largest_difference,
    tiny_model,
)
from training import optim, suffix
from training.blocks import Blocks
from training.config import TrainingConfig, ZeroConfig
from training.engine import compute_dtype, engine
from training.optim import Slots
from training.schedules import Phase
from training.suffix import Weights
from training.team import Team
from training.zero import effective_stage

GROWING = (
    Phase(name="head", start_epoch=0.0, blocks=()),
    Phase(name="blocks", start_epoch=1.0, blocks=(1, 2)),
    Phase(name="everything", start_epoch=2.0, blocks=(0, 1, 2), embeddings=True),
)
# Blocks freeze again, in the middle and with the head; what thaws once more goes on from its moments.
WANDERING = (
    Phase(name="outer", start_epoch=0.0, blocks=(0,)),
    Phase(name="inner", start_epoch=1.0, blocks=(1,), head=False),
    Phase(name="outer-again", start_epoch=2.0, blocks=(0, 2)),
)
STEPS = 3
BATCH = 12
EPSILON = 1e-3
STAGES = (0, 1, 2, 3)


def settings(stage: int = 0, precision: str = "fp32", **other: Any) -> TrainingConfig:
    return TrainingConfig(
        learning_rate=1e-2,
        layerwise_lr_decay=0.7,
        weight_decay=0.1,
        momentum=0.8,
        adam_beta2=0.99,
        # The gradient of a key's bias is zero but for rounding, which Adam would blow up to full steps.
        adam_epsilon=EPSILON,
        # Gradients of the tiny model are some way above and below it.
        max_grad_norm=other.pop("max_grad_norm", 1.5),
        precision=precision,  # type: ignore[arg-type]
        zero=ZeroConfig(stage=stage, offload=other.pop("offload", "none")),  # type: ignore[arg-type]
        **other,
    )


def batch_of(step: int) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of sentences of 3 to 9 tokens, padded on the right."""
    draw = torch.Generator().manual_seed(step)
    ids = torch.randint(5, len(VOCABULARY), (BATCH, 9), generator=draw)
    lengths = torch.randint(3, 10, (BATCH, 1), generator=draw)
    mask = (torch.arange(9) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}, torch.randint(0, 2, (BATCH,), generator=draw)


def factor(step: int) -> float:
    return 1.0 - step / 20


@dataclass
class Outcome:
    weights: dict[str, Tensor] = field(default_factory=dict)
    slots: dict[str, Slots] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def kept(self, kind: str | None = None) -> dict[str, Tensor]:
        """The optimizer's state tensors, of one kind or of all."""
        return {
            f"{key}/{name}": tensor
            for name, slots in self.slots.items()
            for key, tensor in slots.tensors.items()
            if kind in (None, key)
        }

    def steps(self) -> dict[str, int]:
        return {name: slots.steps for name, slots in self.slots.items()}


def depth_of(name: str) -> int:
    """Blocks from the top, read off the name; -1 for the head."""
    if name.startswith("bert.embeddings."):
        return BLOCKS
    return BLOCKS - 1 - int(name.split(".")[3]) if ".layer." in name else -1


def reference(phases: Sequence[Phase], training: TrainingConfig) -> Outcome:
    """One optimizer over the whole run, one parameter a group, the whole model at once."""
    model = tiny_model().eval()
    named = dict(model.named_parameters())
    rates = {name: training.learning_rate * 0.7 ** max(0, depth_of(name)) for name in named}
    groups = [{"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for p in named.values()]
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=EPSILON)
    elif training.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.8)
    else:
        optimizer = torch.optim.Adafactor(groups)
    outcome = Outcome()
    for number, phase in enumerate(phases):
        units = {BLOCKS - 1 - block for block in phase.blocks}
        units |= ({-1} if phase.head else set()) | ({BLOCKS} if phase.embeddings else set())
        for name, parameter in named.items():
            parameter.requires_grad_(depth_of(name) in units)
        for step in range(number * STEPS, (number + 1) * STEPS):
            optimizer.zero_grad(set_to_none=True)
            inputs, labels = batch_of(step)
            loss = cross_entropy(model(**inputs).logits, labels)
            loss.backward()
            if training.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
            for group, name in zip(optimizer.param_groups, named, strict=True):
                group["lr"] = rates[name] * factor(step)
            optimizer.step()
            outcome.losses.append(loss.item())
    for name, parameter in named.items():
        if state := dict(optimizer.state.get(parameter, {})):
            outcome.weights[name] = parameter.detach()
            outcome.slots[name] = Slots(steps=int(state.pop("step", 0)), tensors=state)
    return outcome


def drive(
    team: Team,
    phases: Sequence[Phase],
    training: TrainingConfig,
    accumulation: int,
    scaler: dict[str, float] | None = None,
) -> Outcome:
    """The same run on one engine a phase, as the training loop does it, with its seams checked."""
    blocks = Blocks(tiny_model())
    outcome = Outcome()
    for number, phase in enumerate(phases):
        own, slots = outcome.weights, outcome.slots
        module = suffix.build(phase, blocks, own, dropout=0.0).to(team.device)
        shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        ages = {name: slot.steps for name, slot in slots.items()}
        groups = optim.groups(shapes, blocks=blocks, shapes=shapes, ages=ages, training=training)
        boundary = suffix.boundary(phase, blocks, own)
        below = None if boundary < 0 else blocks.prefix(boundary, compute_dtype(training.precision))
        # A copy: in fp32 it shares the memory of the model, which would move with it.
        prefix = None if below is None else copy.deepcopy(below).to(team.device)
        with engine(
            module,
            groups=groups,
            weights=own,
            slots=slots,
            training=training,
            team=team,
            scaler=scaler,
        ) as live:
            present = Weights(blocks, own)
            assert_same(live.weights(), {name: present[name] for name in shapes})
            before = live.slots()
            assert {name: slot.steps for name, slot in before.items()} == {n: ages.get(n, 0) for n in shapes}
            for name, slot in before.items():
                empty = {} if training.optimizer == "adafactor" else slot.tensors
                fresh = {key: torch.zeros(shapes[name]) for key in empty}
                assert_same(slot.tensors, slots[name].tensors if name in slots else fresh)
            suffix.set_modes(live.module, phase, blocks)
            for step in range(number * STEPS, (number + 1) * STEPS):
                loss = torch.zeros((), device=team.device)
                inputs, labels = batch_of(step)
                for index in range(accumulation):
                    rows = slice(index * team.size + team.rank, None, accumulation * team.size)
                    micro = {name: tensor[rows].to(team.device) for name, tensor in inputs.items()}
                    logits = live(**attach(prefix, micro)).float()
                    part = cross_entropy(logits, labels[rows].to(team.device), reduction="sum") / BATCH
                    live.backward(part * team.size, last=index == accumulation - 1)
                    loss += part.detach()
                live.step(factor(step))
                outcome.losses.append(float(team.sum(loss)))
            frozen = {name: tensor.float().cpu().clone() for name, tensor in live.frozen()}
            dtype = compute_dtype(training.precision)
            assert_same(frozen, {name: present[name].to(dtype).float() for name in frozen})
            names = {name for name, _ in live.module.named_parameters()}
            assert set(frozen) == names - set(shapes)
            low = {name: p.detach().float().cpu() for name, p in live.module.named_parameters()}
            outcome.weights = {**own, **live.weights()}
            outcome.slots = {**slots, **live.slots()}
            if training.zero.stage < 3:  # what computes is what is kept, at its precision
                for name in shapes:
                    assert torch.equal(low[name], outcome.weights[name].to(dtype).float()), name
            scaler = live.scaler
    return outcome


def drive_all(team: Team, cases: Sequence[tuple[Any, ...]]) -> list[Outcome]:
    return [drive(team, *case) for case in cases]


def assert_agrees(outcome: Outcome, expected: Outcome, atol: float) -> None:
    assert outcome.losses == pytest.approx(expected.losses, abs=atol)
    assert outcome.steps() == expected.steps()
    assert largest_difference(outcome.weights, expected.weights) < atol
    assert largest_difference(outcome.kept(), expected.kept()) < atol


def cases(stages: Sequence[int], precision: str = "fp32") -> list[tuple[Any, ...]]:
    """Phases, settings and accumulation of runs at some ZeRO stages."""
    growing = [(GROWING, settings(stage, precision), 3) for stage in stages]
    unclipped = [(WANDERING, settings(stage, precision, max_grad_norm=0.0), 1) for stage in stages]
    return [*growing, *unclipped]


def other_cases(stages: Sequence[int]) -> list[tuple[Any, ...]]:
    """The rest of the product."""
    growing = [(GROWING, settings(stage), 1) for stage in stages]
    wandering = [(WANDERING, settings(stage), 3) for stage in stages]
    unclipped = [(GROWING, settings(stage, max_grad_norm=0.0), 2) for stage in stages]
    return [*growing, *wandering, *unclipped]


def test_the_reference_is_of_use() -> None:
    """Clipping binds at some steps and not at others; everything that thawed moved, at its own age."""
    expected = reference(GROWING, settings())
    start = dict(tiny_model().named_parameters())
    assert set(expected.steps().values()) == {3, 6, 9}
    assert all(not torch.equal(tensor, start[name]) for name, tensor in expected.weights.items())
    unclipped = reference(GROWING, settings(max_grad_norm=0.0))
    assert largest_difference(unclipped.weights, expected.weights) > 1e-4
    tight = reference(GROWING, settings(max_grad_norm=0.1))
    assert largest_difference(tight.weights, expected.weights) > 1e-4
    # The sizes cut partitions through the middle of tensors.
    assert any(tensor.numel() % 2 for tensor in start.values())


@pytest.mark.parametrize(
    ("stage", "precision", "workers", "effective"),
    [
        *((stage, "fp32", 2, stage) for stage in range(4)),
        *((stage, "bf16", 1, stage) for stage in range(4)),
        *((stage, "fp32", 1, 0) for stage in range(3)),
        (3, "fp32", 1, 3),
        # DeepSpeed's stage 0 forgets to scale the loss in fp16.
        (0, "fp16", 1, 1),
        (0, "fp16", 2, 1),
        (2, "fp16", 1, 2),
    ],
)
def test_effective_stage(stage: int, precision: str, workers: int, effective: int) -> None:
    assert effective_stage(settings(stage, precision), workers) == effective


@pytest.mark.parametrize("stage", [0, 3])
def test_one_worker_agrees_with_plain_torch(team: Team, stage: int) -> None:
    for case in cases([stage]):
        assert_agrees(drive(team, *case), reference(*case[:2]), atol=1e-6)


def test_zero_3_leaves_torch_as_it_was(team: Team) -> None:
    """DeepSpeed's own linear layer, which rounds otherwise, would stay for all trials to come."""
    linear = torch.nn.functional.linear
    drive(team, GROWING[:1], settings(3), 1)
    assert torch.nn.functional.linear is linear


def compare_two_workers(pair: Crew, some: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Outcome, Outcome]]:
    first, second = pair.run(drive_all, some)
    for case, outcome, other in zip(some, first, second, strict=True):
        assert_same(other.weights, outcome.weights)
        assert_same(other.kept(), outcome.kept())
        assert other.losses == outcome.losses
        yield outcome, reference(*case[:2])


def test_two_workers_agree_with_plain_torch(pair: Crew) -> None:
    some = [*cases(STAGES)[:4], *cases([2, 3])[2:]]
    for outcome, expected in compare_two_workers(pair, some):
        assert_agrees(outcome, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_one_worker_agrees_with_plain_torch_whatever_the_settings(team: Team, stage: int) -> None:
    for case in other_cases([stage]):
        assert_agrees(drive(team, *case), reference(*case[:2]), atol=1e-6)


@pytest.mark.slow
def test_two_workers_agree_with_plain_torch_whatever_the_settings(pair: Crew) -> None:
    for outcome, expected in compare_two_workers(pair, [*cases([0, 1])[2:], *other_cases(STAGES)]):
        assert_agrees(outcome, expected, atol=1e-6)


@pytest.mark.parametrize("phases", [GROWING, WANDERING], ids=["growing", "wandering"])
@pytest.mark.parametrize("stage", [0, 3])
def test_sgd_agrees_with_plain_torch(stage: int, phases: Sequence[Phase], team: Team) -> None:
    training = settings(stage, optimizer="sgd")
    expected = reference(phases, training)
    assert set(expected.kept("momentum_buffer")) == set(expected.kept())
    assert_agrees(drive(team, phases, training, 3), expected, atol=1e-6)


def test_sgd_on_two_workers_agrees_with_plain_torch(pair: Crew) -> None:
    some = [(WANDERING, settings(stage, optimizer="sgd"), 1) for stage in STAGES]
    for outcome, expected in compare_two_workers(pair, some):
        assert_agrees(outcome, expected, atol=1e-6)


@pytest.mark.parametrize("phases", [GROWING, WANDERING], ids=["growing", "wandering"])
def test_adafactor_agrees_with_plain_torch(phases: Sequence[Phase], team: Team) -> None:
    training = settings(0, optimizer="adafactor", max_grad_norm=0.0)
    expected = reference(phases, training)
    assert any(key.startswith("row_var/") for key in expected.kept())
    assert_agrees(drive(team, phases, training, 1), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
)
def test_offload_agrees_with_plain_torch(stage: int, offload: str, team: Team) -> None:
    """DeepSpeed's Adam for the CPU is compiled at its first use ever."""
    for phases in (GROWING, WANDERING):
        training = settings(stage, offload=offload)
        assert_agrees(drive(team, phases, training, 3), reference(phases, training), atol=1e-6)


@pytest.mark.slow
def test_offload_on_two_workers_agrees_with_plain_torch(pair: Crew) -> None:
    some = [
        (WANDERING, settings(stage, offload=offload), 1)
        for stage, offload in ((1, "optimizer"), (2, "optimizer"), (3, "parameters"))
    ]
    for outcome, expected in compare_two_workers(pair, some):
        assert_agrees(outcome, expected, atol=1e-6)


def assert_close(outcome: Outcome, expected: Outcome, precision: str) -> None:
    assert outcome.losses == pytest.approx(expected.losses, rel=2e-2)
    assert outcome.steps() == expected.steps()
    assert largest_difference(outcome.weights, expected.weights) < 1e-2
    wanted = expected.kept("exp_avg")
    moments = torch.cat([tensor.flatten() for tensor in wanted.values()])
    ours = torch.cat([outcome.kept()[name].flatten() for name in wanted])
    assert torch.nn.functional.cosine_similarity(ours, moments, dim=0) > 0.99
    # Kept in fp32, not in what computes.
    dtype = compute_dtype(precision)
    for name, tensor in (*outcome.weights.items(), *outcome.kept("exp_avg_sq").items()):
        assert tensor.dtype == torch.float32
        if tensor.numel() > 10:
            assert not torch.equal(tensor, tensor.to(dtype).float()), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_on_one_worker(team: Team, precision: str) -> None:
    for case in cases(STAGES, precision)[: None if precision == "bf16" else 4]:
        assert_close(drive(team, *case), reference(*case[:2]), precision)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_low_precision_on_two_workers(pair: Crew, precision: str) -> None:
    for outcome, expected in compare_two_workers(pair, cases(STAGES, precision)[:4]):
        assert_close(outcome, expected, precision)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(precision: str) -> None:
    here = Team(torch.device("cuda", 0))
    for case in cases(STAGES, precision):
        outcome, expected = drive(here, *case), reference(*case[:2])
        if precision == "fp32":
            assert_agrees(outcome, expected, atol=1e-4)
        else:
            assert_close(outcome, expected, precision)


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


def test_alone_no_gradient_is_copied_to_be_averaged(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed would lay them all end to end for it, and copy them back."""
    reduced: list[int] = []
    real = deepspeed.comm.all_reduce
    monkeypatch.setattr(
        deepspeed.comm, "all_reduce", lambda t, *a, **kw: reduced.append(t.numel()) or real(t, *a, **kw)
    )
    training = settings()
    blocks = Blocks(tiny_model())
    module = suffix.build(GROWING[2], blocks, {}, dropout=0.0)
    named = dict(module.named_parameters())
    groups = optim.groups(
        named, blocks=blocks, shapes={n: p.shape for n, p in named.items()}, ages={}, training=training
    )
    with engine(module, groups=groups, weights={}, slots={}, training=training, team=team) as live:
        inputs, labels = batch_of(0)
        live.backward(cross_entropy(live(**inputs), labels), last=True)
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
