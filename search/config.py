"""How a sweep is run: the frozen settings of its search, resources, checkpoints and tracking.

Plain dataclasses, like `training/config.py`: the bounds stand in the annotations and are
enforced where the sweep file is read (`search/spec.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen

from search.trackers import WandbConfig

_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    """What makes one trial better than another."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    name: Annotated[str, MinLen(1)]
    """A metric that the task reports, such as `eval/accuracy` or `eval/loss`."""
    goal: Literal["maximize", "minimize"]
    """Whether larger or smaller is better."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Who chooses the next trial's parameters."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    type: Literal["tpe", "random"] = "tpe"
    """`tpe`: from the results so far; `random`: without regard to them."""
    startup_trials: Annotated[int, Ge(0)] | None = None
    """How many trials `tpe` draws at random before it trusts the results; its own choice where unset."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Who stops the trials that are not worth going on with."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    type: Literal["asha", "none"] = "asha"
    """`asha`: at each rung only the best 1 in `reduction_factor` go on; `none`: every
    trial runs to the end."""
    reduction_factor: Annotated[float, Gt(1)] = 3.0
    """Rungs are this factor apart, and 1 in this many trials passes one."""
    min_epochs: Annotated[float, Gt(0)] | None = None
    """The first rung: no trial is stopped before it. The first evaluation where unset."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is tried next, and for how long."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    metric: MetricConfig
    """What makes one trial better than another."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Who chooses the next trial's parameters; the name alone is short for `{type: NAME}`."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """Who stops trials early; the name alone is short for `{type: NAME}`."""
    trials: Annotated[int, Ge(1)] = 16
    """How many trials to run."""
    seed: Annotated[int, Ge(0), Le(4_294_967_295)] = 0
    """Every random draw of the sweep derives from it."""


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What one trial takes, and how many run at once."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    workers: Annotated[int, Ge(1)] = 1
    """Worker processes of one trial."""
    cpus_per_worker: Annotated[int, Ge(1)] = 1
    """CPU cores of each."""
    gpus_per_worker: Annotated[float, Ge(0)] = 0.0
    """GPUs of each; a fraction shares one."""
    max_concurrent: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """How many trials run at once; `auto`: as many as fit."""


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """What is kept on disk."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    keep: Annotated[int, Ge(1)] = 3
    """How many of the sweep's best checkpoints to keep, besides those that running trials need."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where results are streamed to."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    wandb: WandbConfig | None = field(default_factory=WandbConfig)
    """Weights & Biases; null for none."""
