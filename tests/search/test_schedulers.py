"""The contract of every scheduler in the table, ASHA's law, and a search in virtual time."""

from __future__ import annotations

import copy
import heapq
import math
import statistics
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from search.config import MetricConfig, SchedulerConfig
from search.records import Goal, Result, TrialRecord, TrialState
from search.schedulers import SCHEDULERS, Decision, Scheduler, make_scheduler
from search.schedulers.asha import Asha
from training.config import TrainingConfig

METRIC = "eval/accuracy"


def made(
    name: str, goal: Goal = "maximize", epochs: float = 9, evaluations: int = 1, **settings: Any
) -> Scheduler:
    return make_scheduler(
        SchedulerConfig(type=name, **settings),  # type: ignore[arg-type]
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


def test_the_table_is_what_the_sweep_file_takes() -> None:
    assert set(SCHEDULERS) == set(get_args(get_type_hints(SchedulerConfig)["type"]))


@pytest.mark.parametrize("name", SCHEDULERS)
class TestContract:
    def test_a_lone_trial_goes_on(self, name: str) -> None:
        for values in ([0.5], [0.5, 0.4, 0.3], [math.nan], []):
            alone = trial(0, *values)
            assert made(name).decide(alone, [alone]) is Decision.CONTINUE

    def test_the_leader_goes_on(self, name: str) -> None:
        for length in range(1, 10):
            trials = [trial(i, *([0.1 * i] * length)) for i in range(10)]
            assert made(name).decide(trials[-1], trials) is Decision.CONTINUE

    def test_a_trial_at_its_end_is_not_stopped(self, name: str) -> None:
        trials = [trial(0, *[0.1] * 9), *(trial(i, *[0.9] * 9) for i in range(1, 10))]
        assert made(name).decide(trials[0], trials) is Decision.CONTINUE
        shorter = [trial(0, 0.1, 0.1, 0.1, epochs=3), *trials[1:]]
        assert made(name).decide(shorter[0], shorter) is Decision.CONTINUE

    def test_pure(self, name: str) -> None:
        trials = [trial(i, 0.1 * i, 0.1 * i, 0.1 * i) for i in range(10)]
        before, scheduler = copy.deepcopy(trials), made(name)
        first = [scheduler.decide(t, trials) for t in trials]
        assert [scheduler.decide(t, trials) for t in reversed(trials)] == first[::-1]
        assert [made(name).decide(t, list(reversed(trials))) for t in trials] == first
        assert trials == before

    def test_less_of_the_opposite_is_the_same(self, name: str) -> None:
        values = [0.3, 0.1, 0.4, 0.1, 0.5, 0.9, 0.2, 0.6]
        more = [trial(i, v) for i, v in enumerate(values)]
        less = [trial(i, -v) for i, v in enumerate(values)]
        up, down = made(name), made(name, goal="minimize")
        assert [up.decide(t, more) for t in more] == [down.decide(t, less) for t in less]

    def test_survives_what_is_no_number(self, name: str) -> None:
        for bad in (math.nan, math.inf, -math.inf):
            trials = [trial(0, bad), trial(1, 0.1), trial(2, bad), trial(3, 0.2)]
            assert made(name).decide(trials[3], trials) is Decision.CONTINUE
            assert all(isinstance(made(name).decide(t, trials), Decision) for t in trials)
        lacking = replace(trial(0, 0.5), results=(Result(epochs=1, metrics={"other": 1.0}),))
        assert isinstance(made(name).decide(lacking, [lacking, trial(1, 0.5)]), Decision)


def test_unknown_scheduler() -> None:
    with pytest.raises(ValueError, match="must be one of asha, none, got 'magic'"):
        made("magic")


def test_none_stops_nobody() -> None:
    assert set(decisions(made("none"), *[[0.1 * i] for i in range(10)])) == {Decision.CONTINUE}


@pytest.mark.parametrize("factor", [1, 0.5, math.nan])
def test_reduction_factor_must_be_above_one(factor: float) -> None:
    with pytest.raises(ValueError, match=rf"^reduction_factor must be > 1, got {factor}$"):
        Asha(metric=METRIC, goal="maximize", epochs=3, reduction_factor=factor)


def test_min_epochs_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match=r"^min_epochs must be > 0, got 0$"):
        Asha(metric=METRIC, goal="maximize", epochs=3, min_epochs=0)


def test_rungs_start_at_the_first_evaluation_and_end_below_the_full_length() -> None:
    asha = Asha(metric=METRIC, goal="maximize", epochs=9, evaluations_per_epoch=2)
    assert asha.levels(9) == (0.5, 1.5, 4.5)
    assert asha.levels(4.5) == (0.5, 1.5)
    assert asha.levels(0.5) == ()
    fine = Asha(metric=METRIC, goal="maximize", epochs=1, min_epochs=0.1, reduction_factor=2)
    assert fine.levels(1) == pytest.approx((0.1, 0.2, 0.4, 0.8))


@pytest.mark.parametrize(
    ("arrived", "survivors"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (7, 3), (9, 3), (10, 4), (27, 9)]
)
def test_the_law(arrived: int, survivors: int) -> None:
    """At factor 3, the best 1 + floor((n - 1) / 3) of n go on."""
    found = decisions(made("asha"), *[[i / 100] for i in range(arrived)])
    assert found == [Decision.STOP] * (arrived - survivors) + [Decision.CONTINUE] * survivors


def test_the_law_is_the_quantile_cut_off() -> None:
    rng = np.random.default_rng(0)
    for factor in (2, 3, 4):
        for count in range(1, 40):
            values = rng.normal(size=count)
            found = decisions(made("asha", reduction_factor=factor), *[[float(v)] for v in values])
            cut_off = np.quantile(values, 1 - 1 / factor)
            assert [d is Decision.CONTINUE for d in found] == list(values >= cut_off - 1e-12)


def test_early_arrivals_are_judged_by_who_was_there() -> None:
    asha = made("asha")
    bad = trial(0, 0.1)
    assert asha.decide(bad, [bad]) is Decision.CONTINUE
    assert asha.decide(bad, [bad, trial(1)]) is Decision.CONTINUE, "has no evaluation yet"
    assert asha.decide(bad, [bad, trial(1, 0.2)]) is Decision.STOP


def test_ties_go_on_and_no_number_is_the_worst() -> None:
    assert decisions(made("asha"), [0.5], [0.5], [0.5]) == [Decision.CONTINUE] * 3
    assert decisions(made("asha"), [math.nan], [-9.0], [math.inf]) == [
        Decision.STOP,
        Decision.CONTINUE,
        Decision.STOP,
    ]


def test_only_rungs_decide_and_by_the_value_there() -> None:
    leader = trial(1, 0.5, 0.5, 0.5)
    between = trial(0, 0.1, 0.1)
    assert made("asha").decide(between, [between, leader]) is Decision.CONTINUE, "2 is no rung"
    fallen = trial(0, 0.9, 0.9, 0.4)
    assert made("asha").decide(fallen, [fallen, leader]) is Decision.STOP, "the best so far does not count"
    risen = trial(0, 0.1, 0.1, 0.6)
    assert made("asha").decide(risen, [risen, leader]) is Decision.CONTINUE


def test_a_rung_between_evaluations_counts_at_the_next() -> None:
    asha = made("asha", min_epochs=1.4, epochs=9)
    leader = trial(1, 0.5, 0.5, 0.9)
    assert asha.decide(trial(0, 0.1), [trial(0, 0.1), leader]) is Decision.CONTINUE
    assert asha.decide(trial(0, 0.9, 0.1), [trial(0, 0.9, 0.1), leader]) is Decision.STOP
    assert asha.decide(trial(0, 0.1, 0.1, 0.1), [trial(0, 0.1, 0.1, 0.1), leader]) is Decision.CONTINUE


def test_rungs_hold_for_epochs_that_are_sums_of_fractions() -> None:
    asha = made("asha", epochs=3, evaluations=10)
    drifted = trial(0, *[0.1] * 3, interval=0.1)  # 0.30000000000000004 against 0.3, and below it:
    low = replace(drifted, results=tuple(replace(r, epochs=r.epochs - 2e-10) for r in drifted.results))
    leader = trial(1, *[0.5] * 3, interval=0.1)
    for reached in (drifted, low):
        assert asha.decide(reached, [reached, leader]) is Decision.STOP


def test_trials_of_all_states_count_at_a_rung() -> None:
    for state in TrialState:
        other = replace(trial(1, 0.5), state=state)
        mine = trial(0, 0.4)
        assert made("asha").decide(mine, [mine, other]) is Decision.STOP


def simulate(scheduler: Scheduler, seed: int, budget: float, workers: int = 4) -> tuple[float, float]:
    """Random search over synthetic curves in virtual time: (epochs spent, regret of the best seen).

    A curve rises to its asymptote, 0 at best, at a rate of its own, with a little noise; an
    evaluation takes as long as the trial's speed has it. New trials begin while `budget` epochs last.
    """
    rng = np.random.default_rng(seed)
    trials: list[TrialRecord] = []
    curves: list[np.ndarray] = []
    clock: list[tuple[float, int, float]] = []
    spent, best, epochs = 0.0, -math.inf, 9

    def begin(now: float) -> None:
        asymptote, rate = -rng.gamma(2.0, 0.1), rng.uniform(0.3, 1.0)
        noise = rng.normal(scale=0.005, size=epochs)
        curves.append(asymptote - np.exp(-rate * np.arange(1, epochs + 1)) + noise)
        trials.append(trial(len(trials)))
        pace = float(rng.uniform(0.5, 2.0))
        heapq.heappush(clock, (now + pace, len(trials) - 1, pace))

    for _ in range(workers):
        begin(0.0)
    while clock:
        now, number, pace = heapq.heappop(clock)
        done = len(trials[number].results) + 1
        spent += 1
        best = max(best, float(curves[number][done - 1]))
        trials[number] = trial(number, *(float(v) for v in curves[number][:done]))
        stopped = scheduler.decide(trials[number], trials) is Decision.STOP
        if done < epochs and not stopped:
            heapq.heappush(clock, (now + pace, number, pace))
            continue
        state = TrialState.PRUNED if stopped else TrialState.COMPLETE
        trials[number] = replace(trials[number], state=state)
        if spent < budget:
            begin(now)
    assert all(t.state.finished for t in trials)
    return spent, -best


def test_asha_finds_more_for_the_same_budget() -> None:
    budget = 40 * 9.0
    asha = [simulate(made("asha"), seed, budget) for seed in range(20)]
    fifo = [simulate(made("none"), seed, budget) for seed in range(20)]
    for spent, _ in asha + fifo:
        assert budget <= spent <= budget + 4 * 9
    assert statistics.median(r for _, r in asha) < 0.7 * statistics.median(r for _, r in fifo)
