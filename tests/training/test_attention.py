"""Attention in a low precision on a CPU keeps clear of the fused kernel where it is to be differentiated."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import MakeTrial, tiny_model
from tests.training.test_linear import Calls
from training.attention import adopt
from training.workspace import Workspace

FUSED = "_scaled_dot_product_flash_attention_for_cpu"
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8], [8, 7, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def passed(model: Any, grad: bool) -> tuple[Tensor, list[str]]:
    with Calls() as calls, torch.set_grad_enabled(grad):
        logits: Tensor = model(**BATCH).logits
    return logits, calls.names


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_the_fused_kernel_runs(precision: str, make_trial: MakeTrial, workspace: Workspace) -> None:
    model: Any = workspace.open(make_trial()).blocks.suffix(-1).eval().requires_grad_(True)
    if precision == "bf16":
        model = model.bfloat16()
    trained, calls = passed(model, grad=True)
    assert (FUSED in calls) == (precision == "fp32")
    evaluated, calls = passed(model, grad=False)
    assert FUSED in calls
    torch.testing.assert_close(trained, evaluated, rtol=0.05, atol=0.05)


def test_gradients_are_those_of_fp32() -> None:
    adopt()
    whole: Any = tiny_model().eval()
    low = copy.deepcopy(whole).bfloat16()
    for model in (whole, low):
        model(**BATCH).logits.float().square().sum().backward()
    for (name, ours), theirs in zip(low.named_parameters(), whole.parameters(), strict=True):
        if "key.bias" not in name:  # rounding alone
            error = (ours.grad.float() - theirs.grad).norm() / theirs.grad.norm()
            assert error < 0.2, name
