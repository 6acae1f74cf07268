"""The engine against plain torch: same mathematics at every ZeRO stage, across phase changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.training.conftest import Crew, assert_same, largest_difference, tiny_model
from tests.training.engines import (
    GROWING,
    STAGES,
    WANDERING,
    Outcome,
    cases,
    drive,
    drive_all,
    reference,
    settings,
)
from training.engine import compute_dtype
from training.schedules import Phase
from training.team import Team


def assert_agrees(outcome: Outcome, expected: Outcome, atol: float) -> None:
    assert outcome.losses == pytest.approx(expected.losses, abs=atol)
    assert outcome.steps() == expected.steps()
    assert largest_difference(outcome.weights, expected.weights) < atol
    assert largest_difference(outcome.kept(), expected.kept()) < atol


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


@pytest.mark.parametrize("stage", [0, 3])
def test_one_worker_agrees_with_plain_torch(team: Team, stage: int) -> None:
    for case in cases([stage]):
        assert_agrees(drive(team, *case), reference(*case[:2]), atol=1e-6)


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
