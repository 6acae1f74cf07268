"""Linear layers multiply by another library, and come to the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.conftest import MakeTrial
from training import linear
from training.blocks import Blocks
from training.linear import Linear, adopt
from training.workspace import Workspace

needs_onednn = pytest.mark.skipif(linear.library() != "onednn", reason="this CPU's products are torch's own")


class Calls(TorchDispatchMode):
    """Notes the operators that are called, and what the products are given."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.strides: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        if self.names[-1] == "_linear_pointwise":
            self.strides += [tensor.stride() for tensor in args[:2]]
        return func(*args, **(kwargs or {}))


def pair(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """torch's layer, and one with the same weights that was adopted."""
    torch.manual_seed(3)
    plain = nn.Linear(33, 17, bias=bias)
    ours = nn.Sequential(copy.deepcopy(plain))
    adopt(ours)
    return plain, ours[0]  # type: ignore[return-value]


def gradients(layer: nn.Linear, x: Tensor) -> list[Tensor]:
    layer.zero_grad()
    x = x.detach().requires_grad_()
    found = layer(x)
    (found * torch.arange(float(found.numel())).view(found.shape).sin()).sum().backward()
    return [found.detach(), x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]


@pytest.mark.parametrize("library", ["onednn", "torch"])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(
    bias: bool, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(linear, "library", lambda: library)
    plain, ours = pair(bias)
    assert type(ours) is Linear
    draw = torch.Generator().manual_seed(4)
    whole = torch.randn(6, 9, 33, generator=draw)
    # As the pooler has them: the first token of every row.
    for x in (whole, whole[0], whole[:, 0], whole[:1, :1], whole.transpose(0, 1)):
        for mine, theirs in zip(gradients(ours, x), gradients(plain, x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_what_is_frozen_gets_no_gradient() -> None:
    _, ours = pair()
    ours.weight.requires_grad_(False)
    ours(torch.randn(4, 33)).sum().backward()
    assert ours.weight.grad is None
    assert ours.bias.grad is not None


def test_low_precision_is_left_to_torch() -> None:
    plain, ours = pair()
    x = torch.randn(5, 33, dtype=torch.bfloat16)
    assert torch.equal(ours.bfloat16()(x), plain.bfloat16()(x))


@needs_onednn
def test_no_operand_has_rows_that_lie_apart() -> None:
    """The library's reference would multiply them, a hundred times slower."""
    _, ours = pair()
    with Calls() as calls:
        gradients(ours, torch.randn(6, 9, 33)[:, 0])
    assert len(calls.strides) == 6  # three products
    assert all(min(stride) == 1 and max(stride) in (33, 17) for stride in calls.strides)


@needs_onednn
def test_the_layers_of_a_model_multiply_by_it(make_trial: MakeTrial, workspace: Workspace) -> None:
    """In the suffix as in the frozen blocks."""
    blocks: Blocks = workspace.open(make_trial()).blocks
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    for part in (blocks.suffix(-1), blocks.prefix(2)):
        with Calls() as calls, torch.no_grad():
            part(**batch)
        assert calls.names.count("_linear_pointwise") >= 12
        assert "addmm" not in calls.names
