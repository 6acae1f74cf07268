"""What one trial is: the frozen settings that `train` runs from.

Plain dataclasses, so that a trial can be trained without the sweep file's reader. The
bounds stand in the annotations, where that reader enforces them (`search/spec.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

# Read by pydantic where a sweep file is validated; unknown keys are errors there.
_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The pretrained model that every trial starts from."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    name: Annotated[str, MinLen(1)]
    """Hub id, directory, or `package:IMPORT/PATH` for weights that ship in a Python package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off unless asked for."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is learned, and from which columns."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    type: Literal["sequence-classification"] = "sequence-classification"
    """The kind of task."""
    text: Annotated[str, MinLen(1)] = "text"
    """Column that holds the text."""
    text_pair: str | None = None
    """Column that holds the second text of a pair."""
    label: Annotated[str, MinLen(1)] = "label"
    """Column that holds the label."""
    max_length: Annotated[int, Ge(2), Le(1_000_000)] = 128
    """Longest input, in tokens; what is longer is cut."""


@dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """How many examples of each split to use; all of them where unset."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    train: Annotated[int, Ge(1)] | None = None
    """Use only this many training examples, from the start."""
    validation: Annotated[int, Ge(1)] | None = None
    """Use only this many validation examples, from the start."""
    test: Annotated[int, Ge(1)] | None = None
    """Use only this many test examples, from the start."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the examples are: files, or the splits of a data set."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    train: Annotated[str, MinLen(1)] = "train"
    """A CSV, TSV, JSONL or Parquet file, or a directory of such; with `name`, a split of it."""
    validation: Annotated[str, MinLen(1)] = "validation"
    """As `train`: the examples that trials are compared on."""
    test: str | None = None
    """As `train`: touched only when a winner is confirmed."""
    name: str | None = None
    """Hub id or directory of a data set; then `train`, `validation` and `test` are its splits."""
    subset: str | None = None
    """The configuration of a hub data set that has several."""
    limit: LimitConfig = field(default_factory=LimitConfig)
    """How many examples to use."""


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """DeepSpeed ZeRO: what is sharded over the workers of a trial."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    stage: Literal[0, 1, 2, 3] = 2
    """0: nothing, 1: optimizer state, 2: and gradients, 3: and weights."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lives in host memory: `optimizer`: its state and step (stages 1 to 3); `parameters`: the
    weights as well (stage 3)."""


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Ends a trial that no longer gets better. It counts as complete."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    patience: Annotated[int, Ge(1)] | None = None
    """Evaluations without improvement before the trial ends; never where unset."""
    metric: str = "eval/loss"
    """What has to improve."""
    goal: Literal["minimize", "maximize"] = "minimize"
    """Whether smaller or larger is better."""
    min_delta: Annotated[float, Ge(0)] = 0.0
    """The least change that counts as an improvement."""


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One phase of an explicit unfreezing schedule."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    start: Annotated[float, Ge(0)]
    """Epoch at which the phase begins; the first begins at 0."""
    thaw: Annotated[list[int | Literal["head", "embeddings", "all"]], MinLen(1)]
    """What trains: block indices (0 is nearest the input, -1 the top), `head`, `embeddings`, or `all`."""


@dataclass(frozen=True, kw_only=True)
class UnfreezingConfig:
    """Which layers thaw, and when."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    schedule: Literal["head", "top", "gradual", "bottom-up", "chain-thaw", "lisa", "full", "phases"] = "full"
    """`head`: the head alone; `top`: and the top `depth` blocks; `gradual`: those one by one from
    the top down; `bottom-up`: the bottom `depth` blocks one by one from the bottom up; `chain-thaw`:
    every layer alone, then all; `lisa`: head, embeddings and `depth` blocks that are drawn anew
    every `interval`; `full`: everything; `phases`: as listed under `phases`."""
    depth: Annotated[int, Ge(1)] = 1
    """How many blocks `top`, `gradual` and `bottom-up` thaw, and `lisa` at a time."""
    points: list[Annotated[float, Gt(0), Lt(1)]] | None = None
    """Where `gradual` and `bottom-up` thaw their next block, as fractions of the training; one for
    each block. Spread evenly over the first half where unset."""
    interval: Annotated[float, Gt(0)] = 0.25
    """Epochs between two draws of `lisa`, each of which starts a phase."""
    phases: list[PhaseConfig] | None = None
    """The phases of schedule `phases`."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How one trial trains. Every leaf can be searched: its path is a key of `parameters`."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    epochs: Annotated[float, Gt(0), Le(100_000)] = 3.0
    """Passes over the training data."""
    learning_rate: Annotated[float, Gt(0), Le(100)] = 5e-5
    """Peak learning rate, of the head and the top block."""
    layerwise_lr_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """Factor on the learning rate from each block to the one below it. The discriminative rates of
    ULMFiT (Howard & Ruder 2018) divide by 2.6 from layer to layer: a factor of 0.385."""
    batch_size: Annotated[int, Ge(1), Le(10_000_000)] = 32
    """Examples in one optimizer step, over all workers."""
    micro_batch_size: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Examples in one forward pass of one worker; the rest of the batch is accumulated."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more computation."""
    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    """`adamw`; `adafactor`: factored second moments, without ZeRO; `sgd`: with `momentum`."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Momentum of `sgd`."""
    weight_decay: Annotated[float, Ge(0), Le(10)] = 0.01
    """Weight decay, not on biases and norms: decoupled, but added to the gradient for `sgd`."""
    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Decay of the first moment."""
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Decay of the second moment."""
    adam_epsilon: Annotated[float, Gt(0), Le(1)] = 1e-8
    """Added to the root of the second moment."""
    warmup_ratio: Annotated[float, Ge(0), Lt(1)] = 0.06
    """Fraction of the optimizer steps over which the learning rate rises."""
    warmup_steps: Annotated[int, Ge(0)] | None = None
    """Optimizer steps over which the learning rate rises, in place of `warmup_ratio`."""
    rewarmup_steps: Annotated[int, Ge(0)] = 0
    """Optimizer steps over which the learning rate rises again after each thaw."""
    lr_schedule: Literal["linear", "cosine", "constant", "polynomial"] = "linear"
    """How the learning rate goes on after the warm-up, over the whole trial."""
    lr_power: Annotated[float, Gt(0), Le(100)] = 2.0
    """Exponent of the `polynomial` schedule."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of each label's probability that is spread over all classes."""
    class_weights: Literal["none", "balanced"] | list[Annotated[float, Gt(0)]] = "none"
    """Weight of each class in the loss: `balanced`: inverse to its frequency; or a list, in the order
    of the labels."""
    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    """Gradients are clipped to this global norm; 0 for no clipping."""
    dropout: Annotated[float, Ge(0), Lt(1)] | None = None
    """Dropout of thawed blocks and head; the model's own where unset. Frozen blocks have none."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the computation; weights and moments are kept in fp32 as well."""
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    """DeepSpeed ZeRO."""
    unfreezing: UnfreezingConfig = field(default_factory=UnfreezingConfig)
    """Which layers thaw, and when."""
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    """Ends the trial when it no longer gets better."""
    evaluations_per_epoch: Annotated[int, Ge(1), Le(10_000)] = 1
    """Evaluations (and checkpoints, and chances to stop) in each epoch."""
    log_every: Annotated[int, Ge(1), Le(10)] = 10
    """Optimizer steps between two reports of the training loss."""
    measure_latency: bool = False
    """Whether each evaluation measures `cost/latency`; set where it is an objective of the search."""


@dataclass(frozen=True, kw_only=True)
class PrefixStoreConfig:
    """Where the output of frozen blocks is kept on each node. It makes trials faster, never different."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    mode: Literal["store", "recompute"] = "store"
    """`store`: computed once and read by all trials; `recompute`: computed again for every batch."""
    memory: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    """GB of memory for it, 0 for none; `auto`: a quarter of what is free."""
    disk: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    """GB of disk for what memory does not hold, where reading is faster than computing, 0 for none;
    `auto`: a tenth of what is free."""


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that determines a trial's result."""

    model: ModelConfig
    task: TaskConfig
    data: DataConfig
    training: TrainingConfig
    seed: int
    """Every random draw of the trial derives from it."""
