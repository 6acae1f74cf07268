"""A pretrained model as a row of units: embeddings, block 0 .. block L-1, head.

`prefix` cuts off what is frozen below a boundary, `suffix` is the rest: a fresh copy, so
that training can never touch the pretrained weights. Both keep the parameter names of
the whole model. A new architecture is one line in `ARCHITECTURES`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Unit = int | Literal["embeddings", "head"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where the units lie inside a Transformers base model, as attribute paths."""

    embeddings: str
    blocks: str


_BERT = Architecture(embeddings="embeddings", blocks="encoder.layer")
ARCHITECTURES: dict[str, Architecture] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": Architecture(embeddings="embeddings", blocks="transformer.layer"),
}


class _Hidden(nn.Module):
    """Stands where the embeddings were: hands on the hidden states that come in.

    Most architectures hand them over by name, DistilBERT by position.
    """

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        assert input_ids is None
        assert inputs_embeds is not None
        return inputs_embeds


class Blocks:
    """The units of one pretrained task model, whose weights stay as they are.

    Args:
        model: a Transformers model with a task head, weights in fp32.

    Raises:
        ValueError: for an architecture that `ARCHITECTURES` does not list.
    """

    def __init__(self, model: nn.Module) -> None:
        kind = str(model.config.model_type)  # type: ignore[union-attr]
        architecture = architecture_of(kind)
        self.model = model.eval().requires_grad_(False)
        self._base_name = str(model.base_model_prefix)
        base = model.get_submodule(self._base_name)
        self._embeddings = base.get_submodule(architecture.embeddings)
        blocks = base.get_submodule(architecture.blocks)
        assert isinstance(blocks, nn.ModuleList)
        self._blocks = blocks
        self.num_blocks = len(blocks)
        self._embeddings_path = f"{self._base_name}.{architecture.embeddings}."
        self._blocks_path = f"{self._base_name}.{architecture.blocks}."
        self.names = tuple(name for name, _ in model.named_parameters())

    def unit(self, name: str) -> Unit:
        """The unit of the parameter called `name`, or of the module whose name with a dot is `name`."""
        number = name.removeprefix(self._blocks_path).partition(".")[0]
        if name.startswith(self._blocks_path) and number:
            return int(number)
        return "embeddings" if name.startswith(self._embeddings_path) else "head"

    def height(self, unit: Unit) -> int:
        """Blocks from the top: 0 for the head and the top block, L for the embeddings."""
        if unit == "head":
            return 0
        return self.num_blocks if unit == "embeddings" else self.num_blocks - 1 - int(unit)

    def prefix(self, boundary: int, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Embeddings and the first `boundary` blocks, in evaluation mode.

        Called with `input_ids` and `attention_mask`, both int64 [B, T], its
        `last_hidden_state` [B, T, D] is what block `boundary` takes in. In fp32 it
        shares the model's weights.
        """
        assert 0 <= boundary <= self.num_blocks
        base = self.model.get_submodule(self._base_name)
        memo: dict[int, Any] = {id(self._blocks): _numbered(self._blocks, range(boundary))}
        memo |= {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        if getattr(base, "pooler", None) is not None:
            memo[id(base.pooler)] = None
        shared = copy.deepcopy(base, memo).eval()
        return shared if dtype == torch.float32 else copy.deepcopy(shared).to(dtype)

    def suffix(self, boundary: int) -> nn.Module:
        """A fresh copy of the blocks from `boundary` on and the head; -1 for the whole model.

        Its weights are the pretrained ones. With a boundary >= 0 it takes `inputs_embeds`
        [B, T, D], the hidden states at the boundary, in place of `input_ids`.
        """
        if boundary < 0:
            return copy.deepcopy(self.model)
        kept = _numbered(self._blocks, range(boundary, self.num_blocks))
        memo: dict[int, Any] = {id(self._embeddings): _Hidden(), id(self._blocks): copy.deepcopy(kept)}
        return copy.deepcopy(self.model, memo)


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a Transformers `model_type`.

    Raises:
        ValueError: for one that `ARCHITECTURES` does not list.
    """
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"model.name: architecture {model_type!r} is not supported; use one of {known}")
    return ARCHITECTURES[model_type]


def _numbered(blocks: nn.ModuleList, indices: range) -> nn.ModuleList:
    """Some of `blocks` under their own numbers, so that parameter names stay those of the whole model."""
    part = nn.ModuleList()
    for index in indices:
        part.add_module(str(index), blocks[index])
    return part
