"""Schedulers by name: pure decisions over the ledger. Adding one is a file and a line in the table."""

from __future__ import annotations

from collections.abc import Callable

from search.config import MetricConfig, SchedulerConfig
from search.schedulers.asha import PromotingAsha, StoppingAsha
from search.schedulers.base import Decision, Scheduler
from search.schedulers.fifo import Fifo
from search.schedulers.hyperband import Hyperband
from search.schedulers.median import Median
from search.schedulers.pasha import Pasha
from search.schedulers.rungs import Cost, Ladder, epochs_seen
from training.config import TrainingConfig

__all__ = ["SCHEDULERS", "Cost", "Decision", "Scheduler", "make_scheduler"]


def _asha(config: SchedulerConfig, ladder: Ladder) -> Scheduler:
    return PromotingAsha(ladder) if config.mode == "promote" else StoppingAsha(ladder)


def _auto(config: SchedulerConfig, ladder: Ladder) -> Scheduler:
    return PromotingAsha(ladder)


def _hyperband(config: SchedulerConfig, ladder: Ladder) -> Scheduler:
    return Hyperband(ladder, lambda within: _asha(config, within))


def _median(config: SchedulerConfig, ladder: Ladder) -> Scheduler:
    return Median(ladder)


def _pasha(config: SchedulerConfig, ladder: Ladder) -> Scheduler:
    return Pasha(ladder)


def _none(config: SchedulerConfig, ladder: Ladder) -> Scheduler:
    return Fifo()


SCHEDULERS: dict[str, Callable[[SchedulerConfig, Ladder], Scheduler]] = {
    "auto": _auto,
    "asha": _asha,
    "hyperband": _hyperband,
    "bohb": _hyperband,  # what BOHB schedules by; its sampler goes by the same name
    "median": _median,
    "pasha": _pasha,
    "none": _none,
}
# What `auto` does otherwise than the papers: see README.md.
_FACTORS = {"auto": 4.0}
_FIRST_EVALUATIONS = {"auto": 2}


def make_scheduler(
    config: SchedulerConfig,
    metric: MetricConfig,
    training: TrainingConfig,
    compute: Cost | None = None,
) -> Scheduler:
    """The scheduler that `config` names, for trials that train as `training` says.

    Args:
        compute: what a trial takes up to so many epochs, in epochs of full training; for `cost: compute`.

    Raises:
        ValueError: there is no such scheduler, or a setting is out of range.
    """
    if config.type not in SCHEDULERS:
        raise ValueError(
            f"search.scheduler.type: must be one of {', '.join(SCHEDULERS)}, got {config.type!r}"
        )
    first = _FIRST_EVALUATIONS.get(config.type, 1) / training.evaluations_per_epoch
    assert compute is not None or config.cost == "epochs"
    ladder = Ladder(
        metric=metric.name,
        goal=metric.goal,
        epochs=training.epochs,
        lowest=first if config.min_epochs is None else config.min_epochs,
        factor=config.reduction_factor or _FACTORS.get(config.type, 3.0),
        cost=compute if compute is not None and config.cost == "compute" else epochs_seen,
    )
    return SCHEDULERS[config.type](config, ladder)
