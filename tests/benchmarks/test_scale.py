"""The arithmetic of the scale benchmark."""

from __future__ import annotations

import os
import time
from dataclasses import asdict

import pytest

from tests.benchmarks.scale import Costs, Window, at_scale, fit, steady
from tests.processes import cpu_s

COSTS = Costs(
    per_second=0.1, per_gang_second=0.002, per_trial=0.03, per_result=0.01, per_trial_and_known=0.00002
)


def window(gangs: int, trials: int, results: int, known: int) -> Window:
    cpu = 10 * (COSTS.per_second + gangs * COSTS.per_gang_second)
    cpu += trials * (COSTS.per_trial + known * COSTS.per_trial_and_known) + results * COSTS.per_result
    return Window(seconds=10, gangs=gangs, trials=trials, results=results, known=known, driver_cpu_s=cpu)


def test_the_costs_are_found_again() -> None:
    kinds = [
        (1, 10, 10, 5),
        (2, 19, 19, 90),
        (4, 30, 33, 15),
        (4, 10, 80, 900),
        (1, 5, 40, 400),
        (8, 0, 1, 4),
    ]
    assert asdict(fit([window(*kind) for kind in kinds])) == pytest.approx(asdict(COSTS))


def test_a_driver_is_full_at_one_cpu_second_a_second() -> None:
    rate = COSTS.sustained(200, 1, 1000)
    assert rate == pytest.approx(0.5 / 0.06)
    assert 0.1 + 200 * 0.002 + rate * 0.06 == pytest.approx(1)
    first = at_scale(COSTS)[0]
    assert (first["known"], first["results"]) == (1000, 1)
    assert first["shortest_trial_s"] == pytest.approx(200 / rate)
    full = at_scale(COSTS, nodes=500)[-1]
    assert (full["trials_per_s"], full["shortest_trial_s"]) == (0.0, None)


def test_rates_are_without_the_cold_start() -> None:
    ends = [100.0, 101.0, *(102.0 + i / 2 for i in range(20))]  # the first two on cold gangs
    events = [{"time": at, "kind": "finish"} for at in ends]
    events += [{"time": at - 0.1, "kind": "log", "metrics": {"eval/loss": 1}} for at in ends]
    events += [{"time": at - 0.2, "kind": "log", "metrics": {"train/loss": 1}} for at in ends]
    samples = [
        {"time": 95.0 + i / 4, "driver_cpu_s": i / 8, "gcs_cpu_s": i / 40, "memory_mb": 300.0 + i}
        for i in range(80)
    ]
    found, windows = steady(events, samples, gangs=1)
    assert windows[-1].known == pytest.approx(22, abs=3)
    assert found["trials_per_s"] == pytest.approx(2, rel=0.1)
    assert found["results_per_s"] == pytest.approx(2, rel=0.1)
    assert found["driver_cores"] == pytest.approx(0.5)
    assert found["driver_cpu_s_per_trial"] == pytest.approx(0.25, rel=0.1)
    assert sum(w.seconds for w in windows) == pytest.approx(windows[-1].seconds * len(windows))
    with pytest.raises(ValueError, match="too few"):
        steady(events[:2], samples, gangs=1)
    short, none = steady(events, samples[:2], gangs=1)
    assert (short["trials_per_s"], short["driver_cores"], none) == (found["trials_per_s"], None, [])


def test_cpu_time_of_a_process() -> None:
    before = cpu_s(os.getpid())
    began = time.process_time()
    while time.process_time() - began < 0.3:
        pass
    assert cpu_s(os.getpid()) - before == pytest.approx(0.3, abs=0.15)
