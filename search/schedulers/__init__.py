"""Schedulers by name: pure decisions over the ledger. Adding one is a file and a line in the table."""

from __future__ import annotations

from collections.abc import Callable

from search.config import MetricConfig, SchedulerConfig
from search.schedulers.asha import Asha
from search.schedulers.base import Decision, Scheduler
from search.schedulers.fifo import Fifo
from training.config import TrainingConfig

__all__ = ["SCHEDULERS", "Decision", "Scheduler", "make_scheduler"]


def _asha(config: SchedulerConfig, metric: MetricConfig, training: TrainingConfig) -> Scheduler:
    return Asha(
        metric=metric.name,
        goal=metric.goal,
        epochs=training.epochs,
        evaluations_per_epoch=training.evaluations_per_epoch,
        reduction_factor=config.reduction_factor,
        min_epochs=config.min_epochs,
    )


def _none(config: SchedulerConfig, metric: MetricConfig, training: TrainingConfig) -> Scheduler:
    return Fifo()


SCHEDULERS: dict[str, Callable[[SchedulerConfig, MetricConfig, TrainingConfig], Scheduler]] = {
    "asha": _asha,
    "none": _none,
}


def make_scheduler(config: SchedulerConfig, metric: MetricConfig, training: TrainingConfig) -> Scheduler:
    """The scheduler that `config` names, for trials that train as `training` says.

    Raises:
        ValueError: there is no such scheduler, or a setting is out of range.
    """
    if config.type not in SCHEDULERS:
        raise ValueError(
            f"search.scheduler.type: must be one of {', '.join(SCHEDULERS)}, got {config.type!r}"
        )
    return SCHEDULERS[config.type](config, metric, training)
