"""Trials with given curves, and schedulers to decide on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from search.config import MetricConfig, SchedulerConfig
from search.records import Goal, Result, TrialRecord, TrialState
from search.schedulers import Decision, Scheduler, make_scheduler
from search.schedulers.rungs import Ladder
from training.config import TrainingConfig

METRIC = "eval/accuracy"


def made(
    name: str, goal: Goal = "maximize", epochs: float = 9, evaluations: int = 1, **settings: Any
) -> Scheduler:
    name, _, mode = name.partition(" ")
    config: Any = {"type": name, "mode": mode or "stop"} | settings
    return make_scheduler(
        SchedulerConfig(**config),
        MetricConfig(name=METRIC, goal=goal),
        TrainingConfig(epochs=epochs, evaluations_per_epoch=evaluations),
    )


def trial(number: int, *values: float, interval: float = 1.0, **params: Any) -> TrialRecord:
    """A running trial with these values, one for each evaluation."""
    results = tuple(
        Result(epochs=(i + 1) * interval, metrics={METRIC: value}) for i, value in enumerate(values)
    )
    return TrialRecord(number=number, state=TrialState.RUNNING, params=params, seed=0, results=results)


def decisions(scheduler: Scheduler, *curves: list[float]) -> list[Decision]:
    """What becomes of each trial at its last evaluation, when all curves are in the ledger."""
    trials = [trial(i, *curve) for i, curve in enumerate(curves)]
    return [scheduler.decide(t, trials) for t in trials]


def paused(number: int, *values: float, **params: Any) -> TrialRecord:
    return replace(trial(number, *values, **params), state=TrialState.PAUSED)


def ladder(**settings: Any) -> Ladder:
    return Ladder(**({"metric": METRIC, "goal": "maximize", "epochs": 9, "lowest": 1} | settings))
