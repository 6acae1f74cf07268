"""One contract for every architecture: prefix, segments and suffix together are the whole model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
)

from training import suffix
from training.blocks import ARCHITECTURES, Blocks, architecture_of
from training.schedules import Phase

LAYERS = 3
BERT_SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
}
LLAMA_SIZES = {**BERT_SIZES, "num_key_value_heads": 1, "attention_dropout": 0.1}
SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {
        "dim": 8,
        "n_layers": LAYERS,
        "n_heads": 2,
        "hidden_dim": 12,
        "max_position_embeddings": 24,
    },
    "electra": {**BERT_SIZES, "embedding_size": 6},
    "modernbert": {
        **BERT_SIZES,
        "global_attn_every_n_layers": 2,
        "local_attention": 4,
        "embedding_dropout": 0.1,
        "mlp_dropout": 0.1,
        "initializer_cutoff_factor": 4.0,
    },
    "deberta-v2": {
        **BERT_SIZES,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 6,
        "share_att_key": True,
    },
    "gpt2": {"n_embd": 8, "n_layer": LAYERS, "n_head": 2, "n_positions": 24, "initializer_range": 0.3},
    "llama": LLAMA_SIZES,
    "mistral": {**LLAMA_SIZES, "sliding_window": 3},
    "qwen2": {**LLAMA_SIZES, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "bart": {
        "d_model": 8,
        "encoder_layers": 2,
        "decoder_layers": LAYERS,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 12,
        "decoder_ffn_dim": 12,
        "max_position_embeddings": 24,
        "init_std": 0.3,
        "encoder_layerdrop": 0.5,
    },
    "t5": {
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 12,
        "num_heads": 2,
        "num_layers": 2,
        "num_decoder_layers": LAYERS,
        "decoder_start_token_id": 0,
        "relative_attention_num_buckets": 6,
        "relative_attention_max_distance": 8,
        "initializer_factor": 3.0,
    },
}
SEQ2SEQ = ("bart", "t5")


def build(kind: str, **settings: Any) -> nn.Module:
    torch.manual_seed(3)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    if kind == "bart":
        special["decoder_start_token_id"] = 2
    sizes = {"vocab_size": 20, **special, **SIZES.get(kind, BERT_SIZES), **settings}
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **sizes)).float()


def batch(columns: int = 7) -> dict[str, Tensor]:
    """Three rows of 6, 4 and 2 tokens, the last of which ends the text."""
    lengths = torch.tensor([[6], [4], [2]])
    mask = (torch.arange(columns) < lengths).long()
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(3, columns, dtype=torch.int64)
    ids[:, :7] = torch.randint(3, 20, (3, 7), generator=generator)
    ids *= mask
    ids[torch.arange(3), lengths[:, 0] - 1] = 2
    return {"input_ids": ids, "attention_mask": mask}


def run(part: nn.Module, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return part(**inputs)


# The others of their kind differ in their embeddings only.
ALIKE = {"roberta": "bert", "xlm-roberta": "bert", "camembert": "bert"}


@pytest.fixture(params=sorted(ARCHITECTURES.keys() - ALIKE.keys()))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str) -> nn.Module:
    return build(kind)


def test_prefix_and_suffix_are_the_whole_model(model: nn.Module, kind: str) -> None:
    blocks, inputs = Blocks(model), batch()
    assert blocks.num_blocks == LAYERS + 2 * (kind in SEQ2SEQ)
    whole = run(model.eval(), inputs).logits
    assert whole.std(dim=0).min() > 1e-4
    assert torch.equal(run(blocks.suffix(-1), inputs).logits, whole)
    for boundary in range(blocks.num_blocks + 1):
        states = run(blocks.prefix(boundary), inputs)
        assert [tuple(state.shape) for state in states] == [(3, 7, 8)] * blocks.num_states
        logits = run(blocks.suffix(boundary), {**inputs, "states": states}).logits
        assert torch.equal(logits, whole), boundary


@pytest.mark.parametrize("other", sorted(ALIKE))
def test_architectures_that_are_alike(other: str) -> None:
    model = build(other)
    assert ARCHITECTURES[other] is ARCHITECTURES[ALIKE[other]]
    blocks, inputs = Blocks(model), batch()
    states = run(blocks.prefix(1), inputs)
    logits = run(blocks.suffix(1), {**inputs, "states": states}).logits
    assert torch.equal(logits, run(model.eval(), inputs).logits)


def test_every_block_counts(model: nn.Module) -> None:
    """The states at each boundary are those after the block below it, and of no other."""
    blocks, inputs = Blocks(model), batch()
    at = [run(blocks.prefix(boundary), inputs) for boundary in range(blocks.num_blocks + 1)]
    for low, high in pairwise(at):
        assert any(not torch.equal(a, b) for a, b in zip(low, high, strict=True))


def test_segments_build_on_one_another(model: nn.Module) -> None:
    blocks, inputs = Blocks(model), batch()
    at = [run(blocks.prefix(boundary), inputs) for boundary in range(blocks.num_blocks + 1)]
    real = inputs["attention_mask"].bool()
    for low in range(blocks.num_blocks + 1):
        # What stands where there is padding does not matter, to the last bit.
        states = tuple(torch.where(real[..., None], state, 0.0) for state in at[low])
        for high in range(low, blocks.num_blocks + 1):
            found = run(blocks.segment(low, high), {**inputs, "states": states})
            for ours, whole in zip(found, at[high], strict=True):
                assert torch.equal(ours[real], whole[real]), (low, high)


def test_padding_does_not_matter(model: nn.Module) -> None:
    blocks, inputs = Blocks(model), batch()
    real = inputs["attention_mask"].bool()
    expected = run(model.eval(), inputs).logits
    wide = batch(columns=12)
    for boundary in range(blocks.num_blocks + 1):
        states = run(blocks.prefix(boundary), inputs)
        blank = tuple(torch.where(real[..., None], state, 0.0) for state in states)
        part = blocks.suffix(boundary)
        assert torch.equal(run(part, {**inputs, "states": blank}).logits, expected)
        wider = tuple(torch.nn.functional.pad(state, (0, 0, 0, 5)) for state in blank)
        torch.testing.assert_close(
            run(part, {**wide, "states": wider}).logits, expected, atol=1e-5, rtol=1e-5
        )


def test_a_suffix_lets_go_of_its_states(model: nn.Module) -> None:
    blocks, inputs = Blocks(model), batch()
    part, prefix = blocks.suffix(1), blocks.prefix(1)
    states = run(prefix, inputs)
    run(part, {**inputs, "states": states})
    for module in (*part.modules(), *prefix.modules()):
        assert getattr(module, "state", None) is None


def test_names_are_those_of_the_whole_model(model: nn.Module) -> None:
    blocks = Blocks(model)
    assert blocks.names == tuple(name for name, _ in model.named_parameters())
    units = {name: blocks.unit(name) for name in blocks.names}
    assert set(units.values()) == {"embeddings", "head", *range(blocks.num_blocks)}
    shared = tuple(
        f"{model.base_model_prefix}.{path}." for path in architecture_of(model.config.model_type).shared
    )
    for boundary in range(-1, blocks.num_blocks + 1):
        names = [name for name, _ in blocks.suffix(boundary).named_parameters()]
        kept = {"head", *range(max(0, boundary), blocks.num_blocks)}
        kept |= {"embeddings"} if boundary < 0 else set()
        assert names == [name for name in blocks.names if units[name] in kept or name.startswith(shared)]
        if boundary >= 0:
            below = [name for name in blocks.names if units[name] not in kept]
            base = model.base_model_prefix
            found = [name for name, _ in blocks.prefix(boundary).base.named_parameters()]
            assert [f"{base}.{name}" for name in found] == below
            part = blocks.segment(boundary, blocks.num_blocks).base
            held = {f"{base}.{name}" for name, _ in part.named_parameters()}
            between = {name for name in blocks.names if units[name] in range(boundary, blocks.num_blocks)}
            assert {name for name in held if not name.startswith(shared)} == between


def test_every_parameter_is_in_one_unit_of_the_right_height(model: nn.Module, kind: str) -> None:
    blocks = Blocks(model)
    top = blocks.num_blocks - 1
    for name in blocks.names:
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if numbers:
            expected: object = numbers[0] + (2 if kind in SEQ2SEQ and ".decoder." in name else 0)
        elif name == "transformer.encoder.final_layer_norm.weight":
            expected = 1
        elif any(
            word in name for word in ("embed", "shared", "wte", "wpe", "encoder.relative", "encoder.Lay")
        ):
            expected = "embeddings"
        else:
            expected = "head"
        assert blocks.unit(name) == expected, name
    heights = [blocks.height(unit) for unit in ("head", top, top - 1, 0, "embeddings")]
    assert heights == [0, 0, 1, top, top + 1]


def storage(module: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


def test_prefix_shares_memory_in_fp32_and_only_there(model: nn.Module) -> None:
    blocks = Blocks(model)
    for boundary in range(blocks.num_blocks + 1):
        assert storage(blocks.prefix(boundary)) <= storage(model)
        assert not any(parameter.requires_grad for parameter in blocks.prefix(boundary).parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    low = blocks.prefix(2, torch.bfloat16)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    assert not storage(low) & storage(model)
    assert {state.dtype for state in run(low, batch())} == {torch.bfloat16}
    # Of every weight there is one copy in it, however many boundaries a schedule has.
    higher = dict(blocks.prefix(3, torch.bfloat16).named_parameters())
    assert all(higher[name].data_ptr() == tensor.data_ptr() for name, tensor in low.named_parameters())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_rotary_frequencies_keep_their_precision(model: nn.Module) -> None:
    blocks = Blocks(model)
    whole = blocks.suffix(-1).to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            assert torch.equal(whole.get_buffer(name), buffer)
    inputs = batch()
    states = run(blocks.prefix(2, torch.bfloat16), inputs)
    upper = blocks.suffix(2).to(torch.bfloat16)
    logits = run(upper, {**inputs, "states": states}).logits
    assert torch.equal(logits, run(whole, inputs).logits)
    assert {b.dtype for _, b in model.named_buffers() if b.is_floating_point()} <= {torch.float32}


def test_suffix_shares_nothing(model: nn.Module) -> None:
    blocks = Blocks(model)
    before = [tensor.clone() for tensor in model.parameters()]
    for boundary in range(-1, blocks.num_blocks + 1):
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
        inputs["states"] = run(blocks.prefix(boundary), inputs)
    thawed = tuple(range(blocks.num_blocks))[max(0, boundary) :]
    phase = Phase(name="", start_epoch=0.0, blocks=thawed, embeddings=boundary < 0)
    for dropout, same in ((0.0, True), (None, False), (0.5, False)):
        upper = suffix.build(phase, blocks, {}, dropout=dropout)
        suffix.set_modes(upper, phase, blocks)
        torch.manual_seed(0)
        assert torch.equal(run(upper, inputs).logits, whole) == same


def test_gradients_are_those_of_the_whole_model(model: nn.Module) -> None:
    blocks, inputs = Blocks(model), batch()
    boundary = blocks.num_blocks - 1
    whole = blocks.suffix(-1).requires_grad_(True)
    whole(**inputs).logits.square().sum().backward()
    phase = Phase(name="", start_epoch=0.0, blocks=(boundary,))
    for recomputes in (False, True):
        upper = suffix.build(phase, blocks, {}, dropout=0.0)
        suffix.set_modes(upper, phase, blocks)
        if recomputes:
            suffix.recompute_activations(upper)
        states = run(blocks.prefix(boundary), inputs)
        upper(**inputs, states=states).logits.square().sum().backward()
        for name, parameter in upper.named_parameters():
            if suffix.is_thawed(phase, blocks, name):
                expected = whole.get_parameter(name).grad
                assert expected is not None
                largest = float(expected.abs().max())
                torch.testing.assert_close(
                    parameter.grad, expected, atol=0.02 * largest + 1e-6, rtol=0, msg=name
                )


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="not supported") as error:
        architecture_of("opt")
    known = ", ".join(sorted(ARCHITECTURES))
    assert str(error.value) == f"model.name: architecture 'opt' is not supported; use one of {known}"
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
        "ffn_dim": 8,
    }
    with pytest.raises(ValueError, match="'opt' is not supported"):
        Blocks(OPTForSequenceClassification(OPTConfig(**sizes, word_embed_proj_dim=8)))
    with pytest.raises(ValueError, match="convolutions"):
        Blocks(build("deberta-v2", conv_kernel_size=3))
