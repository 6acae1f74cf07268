"""How a sweep is run: the frozen settings of its search, resources, checkpoints and tracking.

Plain dataclasses, like `training/config.py`: the bounds stand in the annotations and are
enforced where the sweep file is read (`search/spec.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from search.trackers import WandbConfig
from training.config import PrefixStoreConfig

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

    type: Literal["auto", "tpe", "gp", "cmaes", "nsga2", "bohb", "qmc", "random", "grid"] = "auto"
    """From the results so far: `auto` (what was found best), `tpe` (Parzen estimators), `gp` (a Gaussian
    process), `cmaes` (an evolution strategy), `nsga2` (a genetic algorithm, also for several objectives),
    `bohb` (`tpe` on those that got far, for scheduler `bohb`). Without regard to results: `qmc`
    (evenly spread), `random`, `grid` (every combination once, then the sweep ends)."""
    startup_trials: Annotated[int, Ge(0)] | None = None
    """How many trials are drawn at random before results are trusted (for `nsga2`, also how many it
    breeds from); the sampler's own choice where unset."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Who stops the trials that are not worth going on with."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    type: Literal["auto", "asha", "hyperband", "bohb", "median", "pasha", "none"] = "auto"
    """`asha`: at each rung only the best 1 in `reduction_factor` go on; `hyperband`: the same in
    brackets with later and later first rungs; `bohb`: `hyperband`, for sampler `bohb`; `pasha`: no
    farther than it takes to know the ranking; `median`: who is worse than the median of the others
    ends; `none`: every trial runs to the end; `auto`: what was found best, `asha` that promotes
    1 in 4 from the second evaluation on."""
    mode: Literal["stop", "promote"] = "stop"
    """What becomes of those that `asha` and `hyperband` do not let go on: `stop`: they end at once;
    `promote`: every trial pauses at a rung, and goes on as soon as enough others have reached it to
    show that it is among the best. `auto` and `pasha` always promote."""
    reduction_factor: Annotated[float, Gt(1)] | None = None
    """Rungs are this factor apart, and 1 in this many trials passes one; 3 where unset, 4 for `auto`."""
    min_epochs: Annotated[float, Gt(0)] | None = None
    """The first rung: no trial is stopped before it. The first evaluation where unset, for `auto` the
    second."""
    cost: Literal["epochs", "compute"] = "epochs"
    """What rungs are measured in: `epochs` seen, or the `compute` that they took, in epochs of full
    training: then a trial that thaws few layers gets as far before it is judged as its share allows."""


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What the sweep may use, besides its number of trials. It ends tidily at the first limit that it
    reaches, at most one evaluation later."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    hours: Annotated[float, Gt(0)] | None = None
    """Wall-clock while a driver works on it, over all resumes."""
    gpu_hours: Annotated[float, Gt(0)] | None = None
    """GPUs that training trials hold, times hours."""
    cost: Annotated[float, Gt(0)] | None = None
    """Money for the cluster's nodes, by `resources.prices`."""
    patience: Annotated[int, Ge(1)] | None = None
    """Ended trials in a row without a better one; running trials finish then."""
    min_improvement: Annotated[float, Gt(0)] | None = None
    """The least that must still be possible to gain in the metric, by the bound of Makarova et al. 2022,
    which counts from 20 complete trials on; running trials finish then."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is tried next, and for how long."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    metric: MetricConfig
    """What makes one trial better than another."""
    objectives: list[MetricConfig] = field(default_factory=list)
    """What trials are compared by besides: metrics of the task, `cost/latency` (milliseconds an example),
    `cost/parameters` (that it thaws) or `cost/seconds`. Trials on the Pareto front are equals; schedulers and
    the leaderboard go by `metric`, so `scheduler: auto` lets all trials run to their end."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Who chooses the next trial's parameters; the name alone is short for `{type: NAME}`."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """Who stops trials early; the name alone is short for `{type: NAME}`."""
    trials: Annotated[int, Ge(1)] = 16
    """How many trials to run."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """What the sweep may use besides."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Settings to try first, each a mapping of paths in `parameters` to values; what one leaves out is
    drawn."""
    warm_start: list[Annotated[str, MinLen(1)]] = field(default_factory=list)
    """Earlier sweeps whose results the sampler knows from the start: names in the same storage, or paths
    of their directories."""
    default_points: bool = True
    """Whether the customary setting of the model's family is tried first, as near as `parameters`
    comes to it."""
    duplicates: Literal["redraw", "reuse", "allow"] = "redraw"
    """What becomes of a draw that trains as a known trial does: `redraw`: another is drawn; `reuse`: it
    counts as a trial with the known results; `allow`: it trains again, with another seed."""
    seed: Annotated[int, Ge(0), Le(4_294_967_295)] = 0
    """Every random draw of the sweep derives from it."""
    storage: str | None = None
    """A database for the ledger, by the URL of an Optuna storage (`sqlite:////data/study.db`,
    `postgresql://me:${PASSWORD}@host/db`; `${NAME}` is read from the environment); a journal file in the
    sweep's directory where unset."""

    def resolved(self) -> SearchConfig:
        """With what `auto` stands for beside several objectives: what is best for one metric knows no other.

        A scheduler that goes by the metric ends what is cheap, and leaves one end of the front.
        """
        if not self.objectives:
            return self
        sampler, scheduler = self.sampler, self.scheduler
        return replace(
            self,
            sampler=replace(sampler, type="nsga2") if sampler.type == "auto" else sampler,
            scheduler=replace(scheduler, type="none") if scheduler.type == "auto" else scheduler,
        )


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What one trial takes, and how many run at once."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    workers: Annotated[int, Ge(1)] | Annotated[list[Annotated[int, Ge(1)]], MinLen(2), MaxLen(2)] = 1
    """Worker processes of one trial. `[LEAST, MOST]`: a trial that has lost some goes on with the rest, with
    the same global batch, and grows again where there is room."""
    cpus_per_worker: Annotated[float, Gt(0)] = 1
    """CPU cores of each; a fraction shares one with other trials."""
    gpus_per_worker: Annotated[float, Ge(0)] | Literal["auto"] = 0.0
    """GPUs of each; a fraction shares one with other trials; `auto`: the fraction that the sweep's largest
    phase needs of the cluster's smallest GPU."""
    max_concurrent: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """How many trials run at once; `auto`: as many as fit."""
    priority: Annotated[int, Ge(-100), Le(100)] = 0
    """Among sweeps that share a cluster: those with more are served first, beyond one trial each."""
    max_gangs: Annotated[int, Ge(1)] | None = None
    """How many trials run at once while other sweeps wait for the cluster; no limit where unset."""
    prefix_store: PrefixStoreConfig = field(default_factory=PrefixStoreConfig)
    """Where the output of frozen blocks is kept; `recompute` (or `off`) is short for `{mode: recompute}`."""
    prices: dict[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    """Price of an hour of each node type (Ray's node group, as in the cluster's file); `default` is that of
    all others, such as this machine."""

    @property
    def on_gpu(self) -> bool:
        """Whether workers compute on GPUs."""
        return self.gpus_per_worker == "auto" or self.gpus_per_worker > 0

    @property
    def most_workers(self) -> int:
        """Worker processes of a trial that has lost none."""
        return self.workers if isinstance(self.workers, int) else max(self.workers)

    @property
    def fewest_workers(self) -> int:
        """With how many worker processes a trial still goes on."""
        return self.workers if isinstance(self.workers, int) else min(self.workers)


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
