"""How much memory a phase takes on one worker, worked out before anything is loaded.

What is kept all the time follows ZeRO (Rajbhandari et al. 2020, section 3): weights, gradients,
moments and fp32 masters, each cut by the number of workers or not. Activations follow Korthikanti
et al. 2022, section 4, with the terms that this code's encoders save for the backward pass, counted
with `torch.autograd.graph.saved_tensors_hooks`. What DeepSpeed holds besides is as measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from training.config import ModelConfig, TaskConfig, TrainingConfig
from training.schedules import Phase
from training.zero import bucket_numel, effective_stage, has_masters

if TYPE_CHECKING:
    from training.blocks import Blocks

Shapes = tuple[tuple[int, ...], ...]
Device = Literal["cpu", "cuda"]

_FP32 = 4
_ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CONTEXT_BYTES = 700_000_000
"""Of a process on a GPU, besides what torch allocates: CUDA, its libraries and their kernels. Assumed."""
_ALLREDUCE_NUMEL = 500_000_000
"""Largest copy of gradients that DeepSpeed makes to average them at stage 0."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """All that the estimate has to know of a model: shapes of the tensors of its units, and widths."""

    embeddings: Shapes
    blocks: tuple[Shapes, ...]
    head: Shapes
    hidden: int
    intermediate: int
    """Inner width of the feed-forward layers."""
    heads: int
    fused_attention: bool
    """Whether it calls torch's fused attention, which does not keep the matrix of probabilities."""
    hidden_dropout: float
    attention_dropout: float

    def units(self, boundary: int) -> Shapes:
        """Tensors of the blocks from `boundary` on and of the head; -1 for the whole model."""
        return sum(self.blocks[max(boundary, 0) :], self.head + (self.embeddings if boundary < 0 else ()))

    def thawed(self, *phases: Phase) -> Shapes:
        """Tensors that train in any of `phases`."""
        blocks = {index for phase in phases for index in phase.blocks}
        return (
            sum((self.blocks[index] for index in sorted(blocks)), ())
            + (self.head if any(phase.head for phase in phases) else ())
            + (self.embeddings if any(phase.embeddings for phase in phases) else ())
        )


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one worker at the moment of a training step at which the most is in use.

    On a machine without an accelerator, `device` and `host` are the same memory.
    """

    moment: Literal["forward", "backward", "step"]
    """`forward`: in the frozen part; `backward`: all activations are there; `step`: all gradients are."""
    thawed: int
    """Parameters that train; not bytes."""
    weights: int
    """The suffix at compute precision: thawed, and frozen above what once thawed."""
    prefix: int
    """The frozen rest, at compute precision; 0 where it shares the template's memory, or has left a GPU.
    On a CPU in a low precision it is cut out of a copy of the whole model."""
    gradients: int
    masters: int
    """Weights of thawed tensors in fp32, where what computes is not that itself."""
    optimizer: int
    """State of the optimizer, in fp32."""
    activations: int
    """What one micro-batch saves for the backward pass."""
    buffers: int
    """DeepSpeed's buckets and copies, and what operations need while they run."""
    template: int
    """On the host: the pretrained model, in fp32; in a low precision as well, of which a GPU gets parts."""
    state: int
    """On the host: weights and optimizer state of all that trained so far, to go on from and save."""
    offloaded: int
    """On the host: what `zero.offload` put there."""

    @property
    def device(self) -> int:
        """Bytes where the computation runs."""
        return sum(getattr(self, name) for name in DEVICE_PARTS)

    @property
    def host(self) -> int:
        """Bytes in host memory."""
        return self.template + self.state + self.offloaded

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.device + self.host

    @property
    def largest(self) -> str:
        """The greatest part of `device`."""
        return max(DEVICE_PARTS, key=lambda name: int(getattr(self, name)))


HOST_PARTS = ("template", "state", "offloaded")
DEVICE_PARTS = tuple(
    field.name for field in fields(MemoryEstimate) if field.name not in {"moment", "thawed", *HOST_PARTS}
)


def shape_of(blocks: Blocks) -> ModelShape:
    """The shape of a model; its weights may be on the meta device."""
    config: Any = blocks.model.config
    units: dict[Any, list[tuple[int, ...]]] = {}
    for name, parameter in blocks.model.named_parameters():
        units.setdefault(blocks.unit(name), []).append(tuple(parameter.shape))
    layers = tuple(tuple(units[index]) for index in range(blocks.num_blocks))
    return ModelShape(
        embeddings=tuple(units["embeddings"]),
        blocks=layers,
        head=tuple(units["head"]),
        hidden=config.hidden_size,
        intermediate=max(max(shape) for shape in layers[0]),
        heads=config.num_attention_heads,
        fused_attention=config._attn_implementation == "sdpa",
        hidden_dropout=float(getattr(config, "hidden_dropout_prob", getattr(config, "dropout", 0.0))),
        attention_dropout=float(
            getattr(config, "attention_probs_dropout_prob", getattr(config, "attention_dropout", 0.0))
        ),
    )


def read_shape(model: ModelConfig, task: TaskConfig, *, num_labels: int = 2) -> ModelShape:
    """The shape of a model by its configuration alone: no weights are read or made.

    Raises:
        ValueError: where there is no such model, or its architecture is not supported.
    """
    import torch

    from training.blocks import Blocks
    from training.models import load_config
    from training.tasks import TASKS

    config = load_config(model)
    config.num_labels = num_labels
    with torch.device("meta"):
        made = TASKS[task.type].model_class().from_config(config, trust_remote_code=model.trust_remote_code)
    return shape_of(Blocks(made))


_MICRO_BATCH = {"cpu": 32, "cuda": 64}


def micro_batch(training: TrainingConfig, *, workers: int, device: Device) -> int:
    """Examples in one forward pass of one worker, before any of them turned out not to fit."""
    size = training.micro_batch_size
    return min(
        _MICRO_BATCH[device] if size == "auto" else size,
        -(-training.batch_size // workers),
    )


def estimate(
    shape: ModelShape,
    training: TrainingConfig,
    phase: Phase,
    *,
    tokens: int,
    workers: int = 1,
    micro_batch: int = 1,
    earlier: Sequence[Phase] = (),
    device: Device = "cpu",
    stored: bool = False,
) -> MemoryEstimate:
    """Memory of one worker in a training step of `phase`. Pure.

    Three moments may need the most: the forward pass of the frozen part, the start of the
    backward pass, with all activations, and its end, with all gradients.

    Args:
        tokens: columns of a micro-batch: `max_length` for the worst.
        micro_batch: examples in one forward pass of the worker.
        earlier: the trial's phases before this one: what they thawed is in the suffix, and on the host.
        stored: whether the output of the frozen rest comes from the store: it does not run then.
    """
    stage = effective_stage(training, workers)
    element = _ELEMENT_BYTES[training.precision]
    low = training.precision != "fp32"
    num_blocks = len(shape.blocks)
    boundary = min(other.boundary(num_blocks) for other in (phase, *earlier))
    tensors = shape.thawed(phase)
    thawed, held = numel(tensors), numel(shape.units(boundary))
    cut = workers if stage > 0 else 1
    bucket = bucket_numel(tensors)

    weights = element * held
    masters = _FP32 * thawed // cut if low or stage > 0 else 0
    moments = _optimizer_bytes(training, tensors) // cut
    gathered = 0
    if stage == 3:
        weights //= workers
        gathered = element * held if workers > 1 or training.zero.offload == "parameters" else 0
    grown = _gradients(training, stage, thawed, bucket, workers)
    accumulates = training.batch_size > workers * micro_batch
    carried = max(grown.always, grown.made) if accumulates else grown.always
    made, copies = grown.made, grown.copies

    offloaded = 0
    if training.zero.offload != "none":
        # The step's gradients lie there thrice at stages 1 and 2, as measured.
        offloaded += masters + moments + _FP32 * thawed // cut * (1 if stage == 3 else 3)
        masters = moments = carried = made = copies = 0
    if training.zero.offload == "parameters":
        offloaded += weights
        weights = 0

    saved, working = _activations(shape, training, phase, micro_batch, tokens, device)
    runs_from = max(boundary, 0) if stored else 0
    passing = _passing(shape, micro_batch, tokens, element) if phase.boundary(num_blocks) > runs_from else 0
    copied = element * numel(shape.units(-1)) if boundary >= 0 and low else 0
    prefix = copied
    if device == "cuda":
        frozen = numel(shape.embeddings) + sum(map(numel, shape.blocks[: max(boundary, 0)]))
        prefix = element * frozen if boundary >= 0 and not stored else 0

    # Moment -> gradients, activations, buffers.
    during = grown.bucket if stage == 3 else 0
    moments_of_a_step: dict[Literal["forward", "backward", "step"], tuple[int, int, int]] = {
        "forward": (carried, 0, passing + gathered + during),
        "backward": (carried, saved, working + gathered + grown.bucket),
        "step": (max(carried, made), 0, gathered + max(grown.bucket, during + copies)),
    }
    moment = max(moments_of_a_step, key=lambda name: sum(moments_of_a_step[name]))
    gradients, activations, buffers = moments_of_a_step[moment]
    past = shape.thawed(phase, *earlier)
    return MemoryEstimate(
        moment=moment,
        thawed=thawed,
        weights=weights,
        prefix=prefix,
        gradients=gradients,
        masters=masters,
        optimizer=moments,
        activations=activations,
        buffers=buffers,
        template=_FP32 * numel(shape.units(-1)) + (copied if device == "cuda" else 0),
        state=_FP32 * numel(past) + _optimizer_bytes(training, past),
        offloaded=offloaded,
    )


def fraction(share: float, total: int) -> float:
    """Which part of a GPU's `total` bytes torch may allocate in a process that has `share` of the GPU."""
    return max(share / 2, share - CONTEXT_BYTES / total)


def needed(
    shape: ModelShape,
    training: TrainingConfig,
    phase: Phase,
    *,
    tokens: int,
    workers: int,
    earlier: Sequence[Phase] = (),
    device: Device = "cpu",
    stored: bool = False,
) -> int:
    """Bytes that a worker needs for `phase` at the least: at a micro-batch of one example."""
    return estimate(
        shape, training, phase, tokens=tokens, workers=workers, earlier=earlier, device=device, stored=stored
    ).device


@dataclass(frozen=True, kw_only=True)
class _Gradients:
    """Bytes of gradients and of the copies that DeepSpeed makes of them, as measured."""

    always: int
    """Of those that it never lets go of."""
    made: int
    """Of those that a backward pass leaves."""
    bucket: int
    """While the backward pass runs."""
    copies: int
    """At the step, when the bucket is gone."""


def _gradients(training: TrainingConfig, stage: int, thawed: int, bucket: int, workers: int) -> _Gradients:
    element = _ELEMENT_BYTES[training.precision]
    own, whole, part = element * thawed, _FP32 * thawed, _FP32 * thawed // workers
    several, low = workers > 1, training.precision != "fp32"
    if has_masters(training, workers):
        # Those of a micro-batch are there until they are added to the masters'.
        return _Gradients(always=0, made=whole, bucket=0, copies=own)
    if stage == 0:
        average = element * min(thawed, _ALLREDUCE_NUMEL)
        return _Gradients(always=0, made=own, bucket=0, copies=max(average, whole if low else 0))
    if stage == 1 and training.precision == "bf16":
        copies = own + (whole + own if several else 0)
        return _Gradients(always=whole, made=whole, bucket=0, copies=copies)
    full = element * bucket * (2 if several and (low or stage == 3) else 1)
    if stage == 1:
        return _Gradients(always=0, made=own, bucket=full, copies=own)
    # At stage 3 the bucket and the partition's gradients are made with the engine.
    always = part if stage == 3 else 0
    return _Gradients(always=always, made=part, bucket=full, copies=part if stage == 3 else whole)


def _activations(
    shape: ModelShape,
    training: TrainingConfig,
    phase: Phase,
    batch: int,
    tokens: int,
    device: Device,
) -> tuple[int, int]:
    """Bytes that a micro-batch saves for the backward pass, and that the backward pass works with.

    Units of D hidden, F inner width and A heads, per token and in elements. A thawed block saves the
    inputs of its linear layers (4 D counting attention's output, and F), of its norms (2 D, of which one
    is its own output) and of GELU (F), queries, keys and values (3 D), and the masks of dropout (2 D). A
    frozen block above a thawed one lacks the inputs of linear layers and the masks. Attention that is not
    fused saves A x T probabilities before and after dropout, and the mask; torch has no fused attention
    with dropout on a CPU, where it computes that in fp32.
    """
    num_blocks = len(shape.blocks)
    lowest = phase.boundary(num_blocks)
    element = _ELEMENT_BYTES[training.precision]
    mask = element if device == "cpu" else 1
    hidden, inner, matrix = shape.hidden, shape.intermediate, shape.heads * tokens
    hidden_dropout = shape.hidden_dropout if training.dropout is None else training.dropout
    attention_dropout = shape.attention_dropout if training.dropout is None else training.dropout

    # Frozen blocks do not drop out, so theirs is fused wherever the model's is.
    fused = element * (3 * hidden + tokens) + _FP32 * shape.heads
    plain = element * (3 * hidden + matrix)
    frozen_block = element * (3 * hidden + inner) + (fused if shape.fused_attention else plain)
    attention, scores = (fused, 0) if shape.fused_attention else (plain, element * matrix)
    if attention_dropout > 0 and not (shape.fused_attention and device == "cuda"):
        wide = _FP32 if shape.fused_attention else element
        scores = wide * matrix
        attention = wide * 3 * hidden + 2 * scores + (wide if device == "cpu" else mask) * matrix
    masks = 2 * mask * hidden if hidden_dropout > 0 else 0
    block = element * (5 * hidden + 2 * inner) + masks + attention

    per_token = element * hidden  # the head takes in what the last block puts out
    if phase.embeddings:
        per_token += element * hidden + masks // 2 + 16  # token ids, int64
    above = range(max(lowest, 0), num_blocks)
    for index in above:
        if index not in phase.blocks:
            per_token += frozen_block
        else:
            per_token += element * hidden if training.activation_checkpointing else block
    if training.activation_checkpointing and phase.blocks:
        per_token += block  # the one that is recomputed
    working = 0
    if phase.blocks or phase.embeddings:
        working = max(element * inner, 2 * scores - element * (2 * inner + 5 * hidden))
    pooled = element * hidden + (2 * mask * hidden if hidden_dropout > 0 else 0)  # of one token
    return batch * (tokens * per_token + pooled), batch * tokens * working


def _passing(shape: ModelShape, batch: int, tokens: int, element: int) -> int:
    """Bytes that the forward pass of one block needs where nothing is saved."""
    attention = 5 * shape.hidden + (tokens if shape.fused_attention else 2 * shape.heads * tokens)
    return batch * tokens * element * max(2 * shape.intermediate + 3 * shape.hidden, attention)


def _optimizer_bytes(training: TrainingConfig, tensors: Shapes) -> int:
    if training.optimizer == "adafactor":  # a row and a column of each matrix (Shazeer & Stern 2018)
        return _FP32 * sum(
            math.prod(s[:-2]) * (s[-2] + s[-1]) if len(s) > 1 else math.prod(s) for s in tensors
        )
    return _FP32 * numel(tensors) * (2 if training.optimizer == "adamw" else 1)


def numel(tensors: Shapes) -> int:
    """Elements of tensors of these shapes."""
    return sum(math.prod(shape) for shape in tensors)
