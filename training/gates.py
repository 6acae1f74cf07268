"""What stands in a cut model where units were taken out: gates let hidden states in, catches take them out.

A cut model runs the forward pass that Transformers wrote for the whole one, masks, rotary
embeddings, pooling and all. Only its row of blocks is shorter: a gate at the front replaces
whatever the embeddings made by the states at the boundary, a catch at the end keeps what the
last block put out.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

from training.linear import Linear

_LINEAR = nn.functional.linear
"""Torch's own. While ZeRO-3 has an engine there is another in its place, which rounds otherwise."""

Form = Callable[[Tensor], Any]
"""Hidden states [B, T, D] in the form that a block of the architecture returns them in."""


def plain(state: Tensor) -> Any:
    """A block that returns a tensor."""
    return state


def single(state: Tensor) -> Any:
    """A block that returns a tuple of one."""
    return (state,)


def pair(state: Tensor) -> Any:
    """A block that returns hidden states and attention weights."""
    return state, None


def triple(state: Tensor) -> Any:
    """A block that returns hidden states and two position biases."""
    return state, None, None


class Gate(nn.Module):
    """First in a row of blocks: hands on the states at the boundary, whatever comes in."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.state: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        """The states, in the form of a block's output."""
        assert self.state is not None
        return self.form(self.state)


class BiasGate(Gate):
    """The gate of a T5 stack: its first block, which is below, makes the position bias of all the others.

    Args:
        attention: the self-attention of the stack's block 0. Its weights are as pretrained.
    """

    def __init__(self, form: Form, attention: Any) -> None:
        super().__init__(form)
        # A buffer: it follows device and precision, and is no parameter of a block that is not here.
        self.register_buffer(
            "weight", attention.relative_attention_bias.weight.detach().clone(), persistent=False
        )
        self._compute = type(attention).compute_bias
        self._settings = {
            "is_decoder": attention.is_decoder,
            "relative_attention_num_buckets": attention.relative_attention_num_buckets,
            "relative_attention_max_distance": attention.relative_attention_max_distance,
            "_relative_position_bucket": type(attention)._relative_position_bucket,
        }

    def forward(self, *_: Any, **__: Any) -> Any:
        """States [B, T, D], position bias [1, A, T, T]; cross-attention has none."""
        assert self.state is not None
        embedding = lambda buckets: nn.functional.embedding(buckets, self.weight)  # type: ignore[arg-type]  # noqa: E731
        attention = SimpleNamespace(**self._settings, relative_attention_bias=embedding)
        tokens = self.state.shape[1]
        return self.state, self._compute(attention, tokens, tokens, device=self.state.device), None


class Catch(nn.Module):
    """Last in a row of blocks: keeps what comes in."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.state: Tensor | None = None

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """What comes in, in the form of a block's output."""
        self.state = hidden_states
        return self.form(hidden_states)


class Blank(nn.Module):
    """Stands for embeddings that are not needed: the gate behind it only looks at the shape."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = [gate]  # in a list, so that it is not a child

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """The states at the gate."""
        state = self._gate[0].state
        assert state is not None
        return state


class Through(nn.Module):
    """Stands for a norm or pooler that belongs to units above: hands on what comes in."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """What comes in."""
        return hidden_states


class Encoded(Blank):
    """Stands for an encoder that is wholly below: its output is the state at the boundary."""

    def forward(self, *_: Any, **__: Any) -> Any:
        """As the encoder returns it."""
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=super().forward())


class Row(nn.ModuleList):
    """Some blocks under their own numbers, so that parameter names stay those of the whole model."""

    def __getitem__(self, index: Any) -> Any:
        """Models that cut their row to its configured length mean all of it."""
        return self if isinstance(index, slice) else list(self)[index]


class Segment(nn.Module):
    """A part of the base model: from tokens, or from the states at one boundary, to those at another.

    Args:
        base: a cut copy of the base model.
        gates: of each stack, empty where it begins with tokens.
        catches: of each stack; None where the encoder runs to its end.
    """

    def __init__(self, base: nn.Module, gates: list[Gate], catches: list[Catch | None]) -> None:
        super().__init__()
        self.base = base
        self._gates, self._catches = gates, catches
        for module in base.modules():
            if type(module) in (nn.Linear, Linear):
                module.forward = MethodType(_linear, module)

    def forward(self, *, states: tuple[Tensor, ...] = (), **batch: Tensor) -> tuple[Tensor, ...]:
        """States at the upper boundary.

        Args:
            states: those at the lower one, [B, T, D] of each stack; none where it begins with tokens.
            batch: `input_ids` and `attention_mask`, int64 [B, T], and `token_type_ids` where there are.
        """
        assert len(states) == len(self._gates)
        for gate, state in zip(self._gates, states, strict=True):
            gate.state = state
        base: Any = self.base
        inputs: dict[str, Any] = dict(batch)
        if hasattr(base, "_shift_right"):  # T5's task model does it, others' base models do
            inputs["decoder_input_ids"] = base._shift_right(batch["input_ids"])
        try:
            output = base(**inputs)
            found: list[Any] = [catch.state if catch else None for catch in self._catches]
            return tuple(output.encoder_last_hidden_state if state is None else state for state in found)
        finally:
            places: list[Any] = [*self._gates, *(catch for catch in self._catches if catch is not None)]
            for place in places:
                place.state = None


def _linear(module: nn.Linear, states: Tensor) -> Tensor:
    """What a frozen layer puts out must not depend on the engine of whoever computes it."""
    if isinstance(module, Linear):
        return module.product(states, _LINEAR)
    return _LINEAR(states, module.weight, module.bias)


def let_in(module: nn.Module, gates: list[Gate]) -> None:
    """Make a cut task model take `states` besides its own arguments, for the time of a forward pass."""

    def open_gates(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        states = kwargs.pop("states")
        for gate, state in zip(gates, states, strict=True):
            gate.state = state
        kwargs.pop("token_type_ids", None)  # for the embeddings, which are not here
        return args, kwargs

    def close_gates(*_: Any) -> None:
        for gate in gates:
            gate.state = None

    module.register_forward_pre_hook(open_gates, with_kwargs=True)
    module.register_forward_hook(close_gates, always_call=True)


def keep_precision(module: nn.Module) -> None:
    """Keep a module's buffers as precise as they are when the model is cast.

    The frequencies of rotary embeddings are multiplied by positions: in bf16 they would be off by
    whole radians. Transformers loads them in fp32, but whoever casts a model as a whole casts them too.
    """
    # A method, so that a copy of the module has one of its own.
    module._apply = MethodType(_apply_but_keep_precision, module)  # type: ignore[method-assign]


def _apply_but_keep_precision(
    module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    before = dict(module._buffers)
    nn.Module._apply(module, function, recurse)
    for name, buffer in before.items():
        after = module._buffers[name]
        if buffer is not None and after is not None and after.dtype != buffer.dtype:
            module._buffers[name] = buffer.to(after.device)
    return module


def freeze_structure(module: nn.Module) -> None:
    """Turn off what would skip whole blocks at random, or keep keys and values for generation."""
    child: Any
    for child in module.modules():
        if hasattr(child, "layerdrop"):
            child.layerdrop = 0.0
        config: Any = getattr(child, "config", None)
        if config is not None and getattr(config, "use_cache", False):
            config.use_cache = False
