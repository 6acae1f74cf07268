"""What a sweep will take, before anything is spent: pure functions of a file and of what trials cost.

Trials are drawn at random from the space and run in virtual time under the sweep's own scheduler, with scores
that say nothing about the parameters, many sweeps over. What an evaluation interval costs comes from a short
measurement (`search/rates.py`: of a probe or of an earlier sweep).
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from search.budget import Sitting, usage
from search.config import BudgetConfig, MetricConfig
from search.records import Result, TrialRecord, TrialState
from search.schedulers import Decision, Scheduler
from training.config import TrialConfig

# Made-up sweeps, and trials in all of them together.
_SWEEPS, _TRIALS = 20, 1000


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """How long one trial takes, where nobody stops it."""

    evaluations: tuple[tuple[float, float], ...]
    """Epochs and seconds at each evaluation, from the trial's beginning."""
    end_s: float = 0.0
    """After the last one."""
    first: Mapping[int, float] = field(default_factory=dict)
    """Depth -> seconds that a sweep's first trial takes longer there, since later ones reuse its work."""


Rates = Callable[[TrialConfig], Timeline]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A trial of a sweep that is made up."""

    params: Mapping[str, Any]
    timeline: Timeline


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one made-up sweep took."""

    wall_s: float
    trial_s: float
    """Seconds of all trials together."""
    epochs: float
    """Epochs of all trials together."""
    complete: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a sweep will take: means over made-up sweeps, and the range of nine in ten."""

    source: str
    """What it goes by: `probe`, or the name of an earlier sweep."""
    trials: int
    concurrency: int
    complete: float
    """Trials that run to their end."""
    epochs: float
    full_epochs: float
    """If no trial were stopped."""
    wall_s: float
    wall_low_s: float
    wall_high_s: float
    gpu_hours: float
    cost: float | None
    """None without prices."""
    disk_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def simulate(
    drawn: Sequence[Drawn],
    scheduler: Scheduler,
    metric: MetricConfig,
    *,
    concurrency: int,
    startup_s: float,
    handover_s: float,
    seed: int,
) -> Outcome:
    """Run made-up trials in virtual time. A trial's score is drawn once, and wavers a little."""
    chance = random.Random(seed)
    records: dict[int, TrialRecord] = {}
    quality = [chance.random() for _ in drawn]
    clock: list[tuple[float, int, int, float]] = []  # when, trial, index of its evaluation, epochs
    known: set[int] = set()
    now, trial_s = startup_s, 0.0
    while True:
        while len(clock) < concurrency:
            more = len(records) < len(drawn)
            number = scheduler.next(list(records.values()), more=more)
            if number is None and not more:
                break
            extra = 0.0
            if number is None:
                number = len(records)
                records[number] = TrialRecord(
                    number=number, state=TrialState.RUNNING, params=drawn[number].params, seed=0
                )
                first = drawn[number].timeline.first
                extra = sum(seconds for depth, seconds in first.items() if depth not in known)
                known |= first.keys()
            records[number] = replace(records[number], state=TrialState.RUNNING)
            at = len(records[number].results)
            takes = _interval(drawn[number].timeline, at) + extra
            trial_s += takes
            heapq.heappush(
                clock, (now + handover_s + takes, number, at, drawn[number].timeline.evaluations[at][0])
            )
        if not clock:
            break
        now, number, at, epochs = heapq.heappop(clock)
        value = quality[number] + 0.1 * chance.random()
        result = Result(epochs=epochs, metrics={metric.name: value if metric.goal == "maximize" else -value})
        record = replace(records[number], results=(*records[number].results, result))
        records[number] = record
        timeline = drawn[number].timeline
        if at + 1 == len(timeline.evaluations):
            records[number] = replace(record, state=TrialState.COMPLETE)
            continue
        decision = scheduler.decide(record, list(records.values()))
        if decision is Decision.CONTINUE:
            takes = _interval(timeline, at + 1)
            trial_s += takes
            heapq.heappush(clock, (now + takes, number, at + 1, timeline.evaluations[at + 1][0]))
        else:
            state = TrialState.PAUSED if decision is Decision.PAUSE else TrialState.PRUNED
            records[number] = replace(record, state=state)
    return Outcome(
        wall_s=now + statistics.mean(d.timeline.end_s for d in drawn),
        trial_s=trial_s,
        epochs=sum(r.epochs for r in records.values()),
        complete=sum(r.state is TrialState.COMPLETE for r in records.values()),
    )


def _interval(timeline: Timeline, at: int) -> float:
    """Seconds from the evaluation before to this one."""
    before = timeline.evaluations[at - 1][1] if at else 0.0
    last = timeline.end_s if at + 1 == len(timeline.evaluations) else 0.0
    return timeline.evaluations[at][1] - before + last


def forecast(
    draw: Callable[[int], Sequence[Drawn]],
    scheduler: Scheduler,
    metric: MetricConfig,
    *,
    source: str,
    concurrency: int,
    nodes: int,
    gpus_per_trial: float,
    prices: Mapping[str, float],
    startup_s: float,
    handover_s: float,
    disk_bytes: int,
) -> Forecast:
    """What a sweep will take.

    Args:
        draw: the trials of the made-up sweep of this number.
        nodes: of the cluster, all of the dearest type that has a price.
    """
    drawn = [draw(0)]
    drawn += [draw(index) for index in range(1, max(3, min(_SWEEPS, _TRIALS // len(drawn[0]))))]
    outcomes = [
        simulate(
            trials,
            scheduler,
            metric,
            concurrency=concurrency,
            startup_s=startup_s,
            handover_s=handover_s,
            seed=index,
        )
        for index, trials in enumerate(drawn)
    ]
    walls = sorted(outcome.wall_s for outcome in outcomes)
    wall_s = statistics.mean(walls)
    dearest = max(prices, key=lambda kind: prices[kind], default=None)
    sitting = Sitting(seconds=wall_s, node_seconds={dearest: nodes * wall_s} if dearest else {})
    return Forecast(
        source=source,
        trials=len(drawn[0]),
        concurrency=concurrency,
        complete=statistics.mean(outcome.complete for outcome in outcomes),
        epochs=statistics.mean(outcome.epochs for outcome in outcomes),
        full_epochs=statistics.mean(sum(t.timeline.evaluations[-1][0] for t in trials) for trials in drawn),
        wall_s=wall_s,
        wall_low_s=walls[int(0.05 * len(walls))],
        wall_high_s=walls[int(0.95 * len(walls) - 1e-9)],
        gpu_hours=gpus_per_trial * statistics.mean(outcome.trial_s for outcome in outcomes) / 3600,
        cost=usage((), [sitting], prices).cost if prices else None,
        disk_bytes=disk_bytes,
    )


def exceeded(found: Forecast, budget: BudgetConfig) -> list[str]:
    """The budgets that will end the sweep before its trials are through, one line each."""
    forecasts = (
        ("hours", budget.hours, found.wall_s / 3600),
        ("gpu_hours", budget.gpu_hours, found.gpu_hours),
        ("cost", budget.cost, found.cost),
    )
    return [
        f"search.budget.{name}: {limit:g} will do for about {limit / needed:.0%} of the sweep, "
        f"which needs {needed:.3g}"
        for name, limit, needed in forecasts
        if limit is not None and needed is not None and needed > limit
    ]
