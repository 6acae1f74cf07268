"""The forecast: pure arithmetic and sweeps in virtual time, against laws that are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search import forecasts, rates
from search.budget import Sitting
from search.config import BudgetConfig, MetricConfig, SchedulerConfig
from search.forecast import Drawn, Forecast, Outcome, Timeline, exceeded, forecast, simulate
from search.records import Result, TrialRecord, TrialState
from search.results import status
from search.schedulers import make_scheduler
from search.spec import SweepSpec, parse, trial_settings
from search.sweep import create
from training.config import TrainingConfig
from training.timing import Cost, Costs, Shape

METRIC = MetricConfig(name="eval/accuracy", goal="maximize")
TRAINING = TrainingConfig(epochs=8, evaluations_per_epoch=1)
BLOCKS, EXAMPLES = 6, 640


def outcome(scheduler: str | SchedulerConfig, count: int = 27, **options: Any) -> Outcome:
    config = SchedulerConfig(type=scheduler) if isinstance(scheduler, str) else scheduler  # type: ignore[arg-type]
    timeline = Timeline(evaluations=tuple((float(e), 10.0 * e) for e in range(1, 9)), **options)
    return simulate(
        [Drawn(params={}, timeline=timeline)] * count,
        make_scheduler(config, METRIC, TRAINING),
        METRIC,
        concurrency=3,
        startup_s=100.0,
        handover_s=0.5,
        seed=1,
    )


def test_without_a_scheduler_it_is_a_sum() -> None:
    found = outcome("none")
    assert found.complete == 27
    assert found.epochs == 27 * 8
    assert found.trial_s == pytest.approx(27 * 80)
    assert found.wall_s == pytest.approx(100 + 9 * 80.5)
    assert outcome("none", end_s=2.0).wall_s == pytest.approx(100 + 9 * 82.5, abs=3)


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_a_scheduler_that_stops_trials_saves_time(mode: Any) -> None:
    found, full = outcome(SchedulerConfig(mode=mode)), outcome("none")
    assert 1 <= found.complete < 14
    assert found.epochs < 0.7 * full.epochs
    assert found.trial_s == pytest.approx(10 * found.epochs)
    assert 100 + found.trial_s / 3 <= found.wall_s < full.wall_s


def test_what_the_first_trial_does_for_all_is_counted_once() -> None:
    assert outcome("none", first={0: 30.0, 6: 12.0}).trial_s == pytest.approx(27 * 80 + 42)


def spec_of(**search: Any) -> SweepSpec:
    return parse(
        {
            "name": "sweep",
            "model": {"name": "some/model"},
            "data": {"train": "a", "validation": "b"},
            "training": {"epochs": 2, "evaluations_per_epoch": 2},
            "parameters": {
                "batch_size": {"values": [16, 32, 64]},
                "unfreezing.schedule": {"values": ["head", "top", "gradual", "full"]},
                "unfreezing.depth": {"min": 1, "max": 6, "when": {"unfreezing.schedule": ["top", "gradual"]}},
            },
            "search": {"metric": {"name": "eval/accuracy", "goal": "maximize"}, **search},
        }
    )


def law(shape: Shape) -> Cost:
    """Costs that are linear in depth and batch size."""
    return Cost(
        shape=shape,
        begin_s=1.0 + shape.depth,
        step_s=0.01 + 0.001 * shape.batch_size + 0.02 * shape.depth,
        evaluation_s=2.0 + 0.5 * shape.depth,
        store_s=4.0 - 0.5 * shape.depth if shape.batch_size == 16 else 0.0,  # the first of its depth
        trained=320,
        evaluated=100,
        end_s=0.25,
        checkpoint_bytes=1000 * shape.depth,
    )


def test_the_shapes_to_probe_span_the_space() -> None:
    spec = spec_of()
    points = [{"batch_size": b, "unfreezing.schedule": s} for b in (16, 64) for s in ("head", "full")]
    points.append({"batch_size": 32, "unfreezing.schedule": "gradual", "unfreezing.depth": 6})
    configs = [trial_settings(spec, point, 0) for point in points]
    found = rates.shapes(configs, num_blocks=BLOCKS, num_train=EXAMPLES, workers=2)
    assert [(s.depth, s.batch_size) for s in found] == [(d, b) for d in (0, 4, 7) for b in (8, 32)]
    (one,) = rates.shapes(configs[:1], num_blocks=BLOCKS, num_train=EXAMPLES, workers=1)
    assert (one.depth, one.batch_size) == (0, 16)


def test_a_probe_is_interpolated() -> None:
    spec = spec_of()
    costs = Costs(
        start_s=5.0,
        costs=tuple(law(Shape(depth=d, batch_size=b)) for d in (0, 4, 7) for b in (16, 64)),
        processes=1,
    )
    found = rates.probed(costs, num_blocks=BLOCKS, num_train=EXAMPLES, num_validation=200, workers=1)
    point = {"batch_size": 32, "unfreezing.schedule": "top", "unfreezing.depth": 2}
    timeline = found(trial_settings(spec, point, 0))
    cost, half = law(Shape(depth=2, batch_size=32)), EXAMPLES / 32 / 2
    interval = half * cost.step_s + 2 * cost.evaluation_s  # twice as many to evaluate as were measured
    assert [epochs for epochs, _ in timeline.evaluations] == [0.5, 1.0, 1.5, 2.0]
    assert [seconds for _, seconds in timeline.evaluations] == pytest.approx(
        [cost.begin_s + i * interval for i in range(1, 5)]
    )
    assert timeline.end_s == pytest.approx(0.25)
    assert timeline.first == {2: pytest.approx(6.0)}  # twice as many examples as were measured
    gradual = found(trial_settings(spec, {**point, "unfreezing.schedule": "gradual"}, 0))
    assert gradual.first == {0: pytest.approx(8.0), 1: pytest.approx(7.0), 2: pytest.approx(6.0)}


def test_an_earlier_sweep_is_remembered() -> None:
    spec = spec_of()
    per_epoch = {"head": 5.0, "full": 30.0}
    trials = [
        TrialRecord(
            number=number,
            state=TrialState.COMPLETE,
            params={"batch_size": batch, "unfreezing.schedule": schedule},
            seed=0,
            results=tuple(
                Result(epochs=e, metrics={}, seconds=e * per_epoch[schedule]) for e in (0.5, 1.0, 1.5, 2.0)
            ),
        )
        for number, (schedule, batch) in enumerate([("head", 16), ("full", 32), ("head", 64)])
    ]
    found = rates.remembered(spec, trials, num_blocks=BLOCKS, num_train=EXAMPLES, scale=2.0)
    for schedule, seconds in per_epoch.items():
        point = {"batch_size": 32, "unfreezing.schedule": schedule}
        last = found(trial_settings(spec, point, 0)).evaluations[-1]
        assert last == pytest.approx((2.0, 2 * 2 * seconds))  # twice the examples
    with pytest.raises(ValueError, match=r"--from sweep: none of its trials has been evaluated"):
        rates.remembered(spec, [replace(trials[0], results=())], num_blocks=6, num_train=10, scale=1.0)


def made(**options: Any) -> Forecast:
    timeline = Timeline(evaluations=((1.0, 3600.0),))
    settings: dict[str, Any] = {
        "source": "probe",
        "concurrency": 2,
        "nodes": 3,
        "gpus_per_trial": 4.0,
        "prices": {"default": 2.0, "big": 10.0},
        "startup_s": 0.0,
        "handover_s": 0.0,
        "disk_bytes": 7,
    }
    return forecast(
        lambda index: [Drawn(params={}, timeline=timeline)] * 6,
        make_scheduler(SchedulerConfig(type="none"), METRIC, TRAINING),
        METRIC,
        **(settings | options),
    )


def test_hours_and_money() -> None:
    found = made()
    assert (found.wall_s, found.wall_low_s, found.wall_high_s) == (3 * 3600.0,) * 3
    assert found.gpu_hours == pytest.approx(24.0)  # six trials of an hour on four GPUs
    assert found.cost == pytest.approx(3 * 3 * 10.0)  # three nodes of the dearest type
    assert made(prices={}).cost is None
    assert exceeded(found, BudgetConfig(hours=3.0, gpu_hours=100)) == []
    assert exceeded(found, BudgetConfig(gpu_hours=12.0)) == [
        "search.budget.gpu_hours: 12 will do for about 50% of the sweep, which needs 24"
    ]


def test_a_forecast_goes_with_the_sweep_that_it_is_of(tmp_path: Path) -> None:
    spec, cache, directory = spec_of(), tmp_path / "cache", tmp_path / "sweep"
    directory.mkdir()
    forecasts.adopt(spec, cache, directory)
    assert forecasts.read(directory) is None
    forecasts.keep(spec, cache, made().to_json())
    forecasts.adopt(spec_of(trials=3), cache, directory)
    assert forecasts.read(directory) is None  # another file
    forecasts.adopt(spec.model_copy(update={"name": "other"}), cache, directory)
    kept = forecasts.read(directory)
    assert kept == made().to_json()
    compared = forecasts.compare(kept, wall_s=3600.0, gpu_hours=12.0, cost=0.0)
    assert compared["wall_s"] == {"forecast": 10800.0, "actual": 3600.0, "ratio": pytest.approx(1 / 3)}
    assert compared["gpu_hours"]["ratio"] == pytest.approx(0.5)
    (directory / forecasts.FORECAST_FILE).write_text("torn {")
    assert forecasts.read(directory) is None


def test_a_large_sweep_is_foretold_in_seconds() -> None:
    assert math.isfinite(outcome("asha", count=300).wall_s)


def test_status_compares_what_was_foretold_with_what_was_used(tmp_path: Path) -> None:
    spec = spec_of(budget={"hours": 2.0}, default_points=False)
    sweep = create(spec, tmp_path)
    (sweep.directory / forecasts.FORECAST_FILE).write_text(json.dumps(made().to_json()))
    sweep.open().sit(0, Sitting(seconds=5400.0, node_seconds={"default": 5400.0}))
    found = status.of(sweep)
    document = found.document()
    assert document["used"] == {"hours": 1.5, "gpu_hours": 0.0, "cost": 0.0}
    assert document["forecast"]["wall_s"] == {"forecast": 10800.0, "actual": 5400.0, "ratio": 0.5}
    assert "wall-clock 1h30m of 2h00m" in found.text()
    assert "wall-clock 3h00m for all of it" in found.text()
