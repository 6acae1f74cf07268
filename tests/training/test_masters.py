"""fp32 weights beside a bf16 module: what is added, rounded, cleared and let go of."""

from __future__ import annotations

import torch
from torch import nn

from tests.training.engines import GROWING, drive, settings
from training.masters import Masters
from training.team import Team


def module() -> nn.Module:
    made = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    made[0].requires_grad_(False)
    return made


def test_masters_are_what_the_weights_were() -> None:
    computes = module()
    before = {name: tensor.clone() for name, tensor in computes.named_parameters()}
    masters = Masters(computes, torch.bfloat16)
    for name, parameter in computes.named_parameters():
        assert torch.equal(parameter, before[name].to(torch.bfloat16)), name
        if parameter.requires_grad:
            assert torch.equal(masters.of(parameter), before[name]), name
    # Statistics and frequencies stay as precise as they are.
    assert {buffer.dtype for buffer in computes.buffers() if buffer.is_floating_point()} == {torch.float32}


def test_gradients_of_micro_batches_are_added_in_fp32() -> None:
    """In bf16 itself 256 and 1 make 256."""
    computes = module()
    masters = Masters(computes, torch.bfloat16)
    weight = computes[2].weight
    for value in (256.0, 1.0, 0.0078125):
        weight.grad = torch.full_like(weight, value)
        masters.collect()
        assert weight.grad is None
    assert torch.equal(masters.of(weight).grad, torch.full((2, 4), 257.0078125))
    assert masters.of(computes[1].weight).grad is None  # what took no part is not decayed either


def test_a_step_too_small_for_bf16_is_not_lost() -> None:
    computes = module()
    masters = Masters(computes, torch.bfloat16)
    weight = computes[2].weight
    with torch.no_grad():
        masters.of(weight).fill_(1.0)
        masters.spread()
        for _ in range(4):
            masters.of(weight).add_(2.0**-9)
            masters.spread()
    assert masters.of(weight).grad is None
    assert torch.equal(weight, torch.full((2, 4), 1 + 2.0**-7, dtype=torch.bfloat16))


def test_alone_stages_0_to_2_compute_the_same_in_bf16(team: Team) -> None:
    first, *others = (drive(team, GROWING, settings(stage, "bf16"), 2) for stage in range(3))
    for other in others:
        assert other.losses == first.losses
        assert all(torch.equal(other.weights[name], first.weights[name]) for name in first.weights)
