"""One contract for every architecture: prefix and suffix together are the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from training import suffix
from training.blocks import ARCHITECTURES, Blocks, architecture_of
from training.schedules import Phase

LAYERS = 3
SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {
        "dim": 8,
        "n_layers": LAYERS,
        "n_heads": 2,
        "hidden_dim": 12,
        "max_position_embeddings": 24,
    }
}
BERT_SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
}


def build(kind: str) -> nn.Module:
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, vocab_size=20, pad_token_id=0, **SIZES.get(kind, BERT_SIZES))
    return AutoModelForSequenceClassification.from_config(config).float()


def batch() -> dict[str, Tensor]:
    mask = (torch.arange(7) < torch.tensor([[7], [4], [1]])).long()
    return {"input_ids": torch.randint(3, 20, (3, 7)) * mask, "attention_mask": mask}


def run(part: nn.Module, inputs: dict[str, Tensor]) -> Any:
    with torch.no_grad():
        return part(**inputs)


@pytest.fixture(params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def test_prefix_and_suffix_are_the_whole_model(model: nn.Module) -> None:
    blocks, inputs = Blocks(model), batch()
    assert blocks.num_blocks == LAYERS
    whole = run(model.eval(), inputs).logits
    assert whole.std() > 1e-4
    for boundary in range(-1, LAYERS + 1):
        upper = blocks.suffix(boundary)
        if boundary < 0:
            logits = run(upper, inputs).logits
        else:
            hidden = run(blocks.prefix(boundary), inputs).last_hidden_state
            assert hidden.shape == (3, 7, 8)
            logits = run(upper, {"inputs_embeds": hidden, "attention_mask": inputs["attention_mask"]}).logits
        assert torch.equal(logits, whole), boundary


def test_names_are_those_of_the_whole_model(model: nn.Module) -> None:
    blocks = Blocks(model)
    assert blocks.names == tuple(name for name, _ in model.named_parameters())
    units = {name: blocks.unit(name) for name in blocks.names}
    assert set(units.values()) == {"embeddings", "head", *range(LAYERS)}
    for boundary in range(-1, LAYERS + 1):
        names = [name for name, _ in blocks.suffix(boundary).named_parameters()]
        kept = {"head", *range(max(0, boundary), LAYERS)} | ({"embeddings"} if boundary < 0 else set())
        assert names == [name for name in blocks.names if units[name] in kept]
        if boundary >= 0:
            below = [name for name in blocks.names if units[name] not in kept]
            base = model.base_model_prefix
            assert [f"{base}.{name}" for name, _ in blocks.prefix(boundary).named_parameters()] == below


def test_every_parameter_is_in_one_unit_of_the_right_height(model: nn.Module) -> None:
    blocks = Blocks(model)
    for name in blocks.names:
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if "embeddings" in name:
            assert blocks.unit(name) == "embeddings"
        else:
            assert blocks.unit(name) == (numbers[0] if numbers else "head")
    assert [blocks.height(unit) for unit in ("head", 2, 1, 0, "embeddings")] == [0, 0, 1, 2, 3]


def storage(module: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


def test_prefix_shares_memory_in_fp32_and_only_there(model: nn.Module) -> None:
    blocks = Blocks(model)
    for boundary in range(LAYERS + 1):
        assert storage(blocks.prefix(boundary)) <= storage(model)
        assert not any(parameter.requires_grad for parameter in blocks.prefix(boundary).parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    low = blocks.prefix(2, torch.bfloat16)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    assert not storage(low) & storage(model)
    assert run(low, batch()).last_hidden_state.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_suffix_shares_nothing(model: nn.Module) -> None:
    blocks = Blocks(model)
    before = [tensor.clone() for tensor in model.parameters()]
    for boundary in range(-1, LAYERS + 1):
        upper, other = blocks.suffix(boundary), blocks.suffix(boundary)
        assert not storage(upper) & (storage(model) | storage(other))
        with torch.no_grad():
            for parameter in upper.parameters():
                parameter.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("boundary", [-1, 1])
def test_dropout_of_a_suffix_can_be_set(model: nn.Module, boundary: int) -> None:
    """Every dropout of the architecture is reached: at 0 training and evaluation agree."""
    blocks, inputs = Blocks(model), batch()
    whole = run(model.eval(), inputs).logits
    if boundary >= 0:
        hidden = run(blocks.prefix(boundary), inputs).last_hidden_state
        inputs = {"inputs_embeds": hidden, "attention_mask": inputs["attention_mask"]}
    phase = Phase(name="", start_epoch=0.0, blocks=(0, 1, 2)[max(0, boundary) :], embeddings=boundary < 0)
    for dropout, same in ((0.0, True), (None, False), (0.5, False)):
        upper = suffix.build(phase, blocks, {}, dropout=dropout)
        suffix.set_modes(upper, phase, blocks)
        torch.manual_seed(0)
        assert torch.equal(run(upper, inputs).logits, whole) == same


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="not supported") as error:
        architecture_of("gpt2")
    assert str(error.value) == (
        "model.name: architecture 'gpt2' is not supported; "
        "use one of bert, camembert, distilbert, roberta, xlm-roberta"
    )
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9, "n_positions": 8}
    with pytest.raises(ValueError, match="'gpt2' is not supported"):
        Blocks(GPT2ForSequenceClassification(GPT2Config(**sizes)))
