"""A pretrained model as a row of units: embeddings, block 0 .. block L-1, head.

An encoder-decoder is one row too: the encoder's blocks, then the decoder's. `prefix` and `segment`
cut out what is frozen below a boundary, `suffix` is the rest: a fresh copy, so that training can
never touch the pretrained weights. Both keep the parameter names of the whole model. A new
architecture is one line in `ARCHITECTURES`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from training import gates
from training.gates import BiasGate, Blank, Catch, Encoded, Form, Gate, Row, Segment, Through

Unit = int | Literal["embeddings", "head"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where the units lie inside a Transformers base model, as attribute paths.

    Those that a model lacks are passed over: not every one has a projection, or token types.
    """

    embeddings: tuple[str, ...] = ("embeddings",)
    """What makes the input of block 0, and nothing else."""
    blocks: tuple[str, ...] = ("encoder.layer",)
    """The list of blocks; the encoder's and the decoder's."""
    shared: tuple[str, ...] = ()
    """What all blocks read. It trains with the embeddings, and is in every suffix."""
    closing: tuple[str, ...] = ()
    """What follows the encoder's last block: part of it."""
    form: Form = gates.plain
    """How a block returns hidden states."""
    bias: str | None = None
    """Inside block 0, the attention that makes the position bias of all blocks of its stack."""


_BERT = Architecture()
_LLAMA = Architecture(embeddings=("embed_tokens",), blocks=("layers",))
ARCHITECTURES: dict[str, Architecture] = {
    # Encoders.
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": Architecture(blocks=("transformer.layer",)),
    "electra": Architecture(embeddings=("embeddings", "embeddings_project")),
    "modernbert": Architecture(blocks=("layers",)),
    "mpnet": Architecture(shared=("encoder.relative_attention_bias",), form=gates.single),
    "deberta-v2": Architecture(shared=("encoder.rel_embeddings", "encoder.LayerNorm"), form=gates.pair),
    # Decoders.
    "gpt2": Architecture(embeddings=("wte", "wpe", "drop"), blocks=("h",)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    # Encoder-decoders.
    "bart": Architecture(
        embeddings=(
            "shared",
            *(f"{s}.{part}" for s in ("encoder", "decoder") for part in ("embed_tokens", "embed_positions")),
            *(f"{stack}.layernorm_embedding" for stack in ("encoder", "decoder")),
        ),
        blocks=("encoder.layers", "decoder.layers"),
    ),
    "t5": Architecture(
        embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        blocks=("encoder.block", "decoder.block"),
        closing=("encoder.final_layer_norm", "encoder.dropout"),
        form=gates.triple,
        bias="layer.0.SelfAttention",
    ),
}


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """A row of blocks inside the base model: all there is, or the encoder's or the decoder's."""

    path: str
    row: nn.ModuleList
    offset: int
    """The number of its first block among all blocks."""

    def within(self, boundary: int) -> int:
        """The boundary, counted from the first block of this stack and cut to its length."""
        return min(max(boundary - self.offset, 0), len(self.row))


class Blocks:
    """The units of one pretrained task model, whose weights stay as they are.

    Args:
        model: a Transformers model with a task head, weights in fp32.

    Raises:
        ValueError: for an architecture that `ARCHITECTURES` does not list.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self._architecture = architecture_of(str(config.model_type))
        if getattr(config, "conv_kernel_size", 0) > 0:
            raise ValueError("model.name: a DeBERTa with convolutions is not supported; use deberta-v3")
        self.model = model.eval().requires_grad_(False)
        self._cast: dict[torch.dtype, Blocks] = {}
        for module in model.modules():
            if any(name.endswith("inv_freq") for name in module._buffers):
                gates.keep_precision(module)
        self._base_name = str(model.base_model_prefix)
        self._base = model.get_submodule(self._base_name)
        self._stacks: list[_Stack] = []
        self.num_blocks = 0
        for path in self._architecture.blocks:
            row = self._base.get_submodule(path)
            assert isinstance(row, nn.ModuleList)
            self._stacks.append(_Stack(path=path, row=row, offset=self.num_blocks))
            self.num_blocks += len(row)
        self.names = tuple(name for name, _ in model.named_parameters())
        self._embeddings = self._paths((*self._architecture.embeddings, *self._architecture.shared))
        self._closing = self._paths(self._architecture.closing)
        # Some drop out of what the embeddings make by themselves, not by a module.
        self._owners = self._paths(s.path.rpartition(".")[0] for s in self._stacks if len(self._stacks) > 1)

    @property
    def num_states(self) -> int:
        """How many hidden states there are at a boundary: those of the encoder and of the decoder, or one."""
        return len(self._stacks)

    def unit(self, name: str) -> Unit:
        """The unit of the parameter called `name`, or of the module whose name with a dot is `name`."""
        for stack in self._stacks:
            path = f"{self._base_name}.{stack.path}."
            number = name.removeprefix(path).partition(".")[0]
            if name.startswith(path) and number.isdigit():
                return stack.offset + int(number)
        if name.startswith(self._closing):
            return self._stacks[1].offset - 1
        return "embeddings" if name.startswith(self._embeddings) or name in self._owners else "head"

    def height(self, unit: Unit) -> int:
        """Blocks from the top: 0 for the head and the top block, L for the embeddings."""
        if unit == "head":
            return 0
        return self.num_blocks if unit == "embeddings" else self.num_blocks - 1 - int(unit)

    def prefix(self, boundary: int, dtype: torch.dtype = torch.float32) -> Segment:
        """Embeddings and the first `boundary` blocks: from tokens to what block `boundary` takes in."""
        return self.segment(None, boundary, dtype)

    def segment(self, low: int | None, high: int, dtype: torch.dtype = torch.float32) -> Segment:
        """The blocks from `low` up to `high`, in evaluation mode; with embeddings where `low` is None.

        In fp32 it shares the model's weights, in another precision those of one copy of the model.
        """
        assert (low or 0) <= high <= self.num_blocks
        if dtype != torch.float32:
            return self._in(dtype).segment(low, high)
        memo: dict[int, Any] = {id(t): t for t in (*self._base.parameters(), *self._base.buffers())}
        doors: list[Gate] = []
        catches: list[Catch | None] = []
        for index, stack in enumerate(self._stacks):
            start, stop = stack.within(low or 0), stack.within(high)
            first = None if low is None else self._gate(stack)
            if first is not None:
                doors.append(first)
            if index + 1 < len(self._stacks) and stop == len(stack.row):
                catches.append(None)
                if first is not None and start == stop:
                    memo[id(self._owner(stack))] = Encoded(first)
            else:
                catches.append(Catch(self._architecture.form))
            memo[id(stack.row)] = _cut(stack, first, start, stop, catches[-1], memo)
        kept = set(range(low or 0, high)) | ({"embeddings"} if low is None else set())
        self._blank(memo, doors, kept, self._base, self._base_name)
        base = copy.deepcopy(self._base, memo).eval()
        self._settle(base, low, high, caught=True)
        return Segment(base, doors, catches).eval()

    def suffix(self, boundary: int) -> nn.Module:
        """A fresh copy of the blocks from `boundary` on and the head; -1 for the whole model.

        Its weights are the pretrained ones. With a boundary >= 0 it takes `states`, the hidden
        states at the boundary ([B, T, D] of each stack), besides `input_ids` and `attention_mask`.
        """
        if boundary < 0:
            whole = copy.deepcopy(self.model)
            gates.freeze_structure(whole)
            return whole
        memo: dict[int, Any] = {}
        doors: list[Gate] = []
        for index, stack in enumerate(self._stacks):
            start = stack.within(boundary)
            doors.append(self._gate(stack))
            if index + 1 < len(self._stacks) and start == len(stack.row):
                memo[id(self._owner(stack))] = Encoded(doors[-1])
            else:
                memo[id(stack.row)] = _cut(stack, doors[-1], start, len(stack.row), None, memo)
        kept: set[Unit] = {"head", *range(boundary, self.num_blocks)}
        self._blank(memo, doors, kept, self.model, "")
        module = copy.deepcopy(self.model, memo)
        self._settle(module.get_submodule(self._base_name), boundary, self.num_blocks, caught=False)
        gates.let_in(module, doors)
        return module

    def _in(self, dtype: torch.dtype) -> Blocks:
        """The units of one copy of the model in another precision, for all that is cut out of it."""
        if dtype not in self._cast:
            own = self.model.parameters()
            memo: dict[int, Any] = {id(p): nn.Parameter(p.to(dtype), requires_grad=False) for p in own}
            self._cast[dtype] = Blocks(copy.deepcopy(self.model, memo).to(dtype))
        return self._cast[dtype]

    def _paths(self, paths: Any) -> tuple[str, ...]:
        """Attribute paths in the base model as names of modules in the whole one, with a dot."""
        return tuple(f"{self._base_name}.{path}." for path in paths)

    def _owner(self, stack: _Stack) -> nn.Module:
        return self._base.get_submodule(stack.path.rpartition(".")[0])

    def _gate(self, stack: _Stack) -> Gate:
        form, bias = self._architecture.form, self._architecture.bias
        return Gate(form) if bias is None else BiasGate(form, stack.row[0].get_submodule(bias))

    def _blank(
        self, memo: dict[int, Any], doors: Sequence[Gate], kept: set[Any], root: nn.Module, name: str
    ) -> None:
        """Put stand-ins where embeddings are not needed, and norms and poolers of units that are not kept."""
        if doors:
            for path in self._architecture.embeddings:
                try:
                    module = self._base.get_submodule(path)
                except AttributeError:
                    continue
                memo[id(module)] = Blank(doors[-1 if path.startswith("decoder.") else 0])
        shared = self._paths(self._architecture.shared)
        rows = [stack.row for stack in self._stacks]
        for path, module in root.named_modules():
            full = ".".join(part for part in (name, path) if part) + "."
            units = {self.unit(f"{full}{child}") for child, _ in module.named_parameters()}
            if not units or units & {"embeddings", *kept} or id(module) in memo or full.startswith(shared):
                continue
            if not any(child is row for child in module.modules() for row in rows):
                memo[id(module)] = Through()

    def _settle(self, base: nn.Module, low: int | None, high: int, *, caught: bool) -> None:
        """Make the copied settings fit the shorter row."""
        gates.freeze_structure(base)
        config: Any = base.config
        if len(self._stacks) == 1 and getattr(config, "layer_types", None):
            types = list(config.layer_types)
            row = types[low or 0 : high]
            config.layer_types = [*types[:1][: low is not None], *row, *types[:1][:caught]]


def _cut(
    stack: _Stack, first: Gate | None, start: int, stop: int, last: Catch | None, memo: dict[int, Any]
) -> Row:
    """The blocks of a stack from `start` up to `stop`, copied by `memo`, between gate and catch."""
    row = Row()
    if first is not None:
        row.add_module("gate", first)
    for index in range(start, stop):
        row.add_module(str(index), copy.deepcopy(stack.row[index], memo))
    if last is not None:
        row.add_module("catch", last)
    for place in (first, last):
        if place is not None and hasattr(stack.row[0], "attention_type"):  # asked for before it is called
            place.attention_type = stack.row[0].attention_type
    return row


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a Transformers `model_type`.

    Raises:
        ValueError: for one that `ARCHITECTURES` does not list.
    """
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"model.name: architecture {model_type!r} is not supported; use one of {known}")
    return ARCHITECTURES[model_type]
