"""The contract of every scheduler in the table, the others' own laws, and a search in virtual time."""

from __future__ import annotations

import copy
import heapq
import math
import statistics
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest

from search.config import MetricConfig, SchedulerConfig
from search.records import Result, TrialRecord, TrialState
from search.schedulers import SCHEDULERS, Decision, Scheduler, make_scheduler
from search.schedulers.asha import StoppingAsha
from search.schedulers.compute import compute_taken
from search.schedulers.hyperband import Hyperband
from search.schedulers.pasha import Pasha
from tests.search.curves import METRIC, decisions, ladder, made, paused, trial
from training.config import (
    DataConfig,
    ModelConfig,
    TaskConfig,
    TrainingConfig,
    TrialConfig,
    UnfreezingConfig,
)


def test_the_table_is_what_the_sweep_file_takes() -> None:
    assert set(SCHEDULERS) == set(get_args(get_type_hints(SchedulerConfig)["type"]))


VARIANTS = [
    "auto",
    "asha",
    "asha promote",
    "hyperband",
    "hyperband promote",
    "bohb",
    "median",
    "pasha",
    "none",
]


def test_every_scheduler_is_among_the_variants() -> None:
    assert {name.split()[0] for name in VARIANTS} == set(SCHEDULERS)


@pytest.mark.parametrize("name", VARIANTS)
class TestContract:
    def test_a_lone_trial_is_not_stopped(self, name: str) -> None:
        for values in ([0.5], [0.5, 0.4, 0.3], [math.nan], []):
            alone = trial(0, *values)
            assert made(name).decide(alone, [alone]) is not Decision.STOP

    def test_the_leader_goes_on(self, name: str) -> None:
        for length in range(1, 10):
            trials = [trial(i, *([0.1 * i] * length)) for i in range(10)]
            assert made(name).decide(trials[-1], trials) is not Decision.STOP

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
            assert made(name).decide(trials[3], trials) is not Decision.STOP
            assert all(isinstance(made(name).decide(t, trials), Decision) for t in trials)
        lacking = replace(trial(0, 0.5), results=(Result(epochs=1, metrics={"other": 1.0}),))
        assert isinstance(made(name).decide(lacking, [lacking, trial(1, 0.5)]), Decision)


def test_unknown_scheduler() -> None:
    with pytest.raises(ValueError, match=r"must be one of auto, asha, .*, none, got 'magic'"):
        made("magic")


def test_none_stops_nobody() -> None:
    assert set(decisions(made("none"), *[[0.1 * i] for i in range(10)])) == {Decision.CONTINUE}


def test_hyperband_compares_within_brackets_that_halve_later_and_later() -> None:
    hyperband = Hyperband(ladder(), StoppingAsha)
    trials = [trial(i, *[0.5] * 9) for i in range(600)]
    members = [[t for t in trials if hyperband.bracket(t) == b] for b in range(3)]
    shares = [len(m) / 600 for m in members]
    assert shares == pytest.approx([9 / 3 / 5.5, 3 / 2 / 5.5, 1 / 5.5], abs=0.06)
    for bracket, first in enumerate([1, 3, 9]):
        bad, good, *_ = members[bracket]
        stopped = [
            length
            for length in range(1, 9)
            if hyperband.decide(
                trial(bad.number, *[0.1] * length), [trial(bad.number, *[0.1] * length), good]
            )
            is Decision.STOP
        ]
        assert stopped == [level for level in (1, 3) if level >= first]
    bad, other = members[0][0], members[1][0]
    low = trial(bad.number, 0.1)
    assert hyperband.decide(low, [low, other]) is Decision.CONTINUE, "is in another bracket"


def test_pasha_goes_no_farther_than_the_ranking_needs() -> None:
    pasha = made("pasha", epochs=27)
    assert isinstance(pasha, Pasha)
    agreed = [paused(0, *[0.1] * 3), paused(1, *[0.2] * 3), paused(2, *[0.3] * 3)]
    assert pasha.ceiling(agreed) == 1
    assert pasha.next(agreed, more=True) is None
    assert pasha.next(agreed, more=False) == 2, "in the end the best is seen to its end"
    swapped = [paused(0, 0.1, 0.1, 0.4), paused(1, 0.2, 0.2, 0.2), paused(2, 0.3, 0.3, 0.3)]
    assert pasha.ceiling(swapped) == 2
    assert pasha.next(swapped, more=True) == 0


def test_pasha_takes_curves_that_cross_again_and_again_as_equal() -> None:
    pasha = made("pasha", epochs=27)
    assert isinstance(pasha, Pasha)
    noisy = [paused(0, 0.50, 0.52, 0.50), paused(1, 0.51, 0.50, 0.51), paused(2, 0.1, 0.1, 0.1)]
    assert pasha.ceiling(noisy) == 1


def test_compute_charges_what_the_thawed_blocks_take() -> None:
    """Of six blocks: two epochs of the top three are one of full training; the head alone reaches no rung."""

    def config_of(record: TrialRecord) -> TrialConfig:
        schedule, depth = ("top", 3) if record.number else ("head", 1)
        training = TrainingConfig(epochs=9, unfreezing=UnfreezingConfig(schedule=schedule, depth=depth))  # type: ignore[arg-type]
        return TrialConfig(
            model=ModelConfig(name="m"), task=TaskConfig(), data=DataConfig(), training=training, seed=0
        )

    config = SchedulerConfig(type="asha", cost="compute")
    metric, training = MetricConfig(name=METRIC, goal="maximize"), TrainingConfig(epochs=9)
    asha = make_scheduler(config, metric, training, compute_taken(config_of, 6))
    by_epochs = made("asha")
    leader = trial(7, *[0.9] * 9)
    for length in range(1, 10):
        top, head = trial(1, *[0.1] * length), trial(0, *[0.1] * length)
        expected = Decision.STOP if length in (2, 6) else Decision.CONTINUE
        assert asha.decide(top, [top, leader]) is expected
        assert asha.decide(head, [head, leader]) is Decision.CONTINUE
        expected = Decision.STOP if length in (1, 3) else Decision.CONTINUE
        assert by_epochs.decide(head, [head, leader]) is expected


def test_median_stops_who_is_below_the_others_averages() -> None:
    others = [trial(i, 0.1 * i, 0.1 * i + 0.2) for i in range(1, 6)]  # averages 0.2, 0.3, ... 0.6
    for value, decision in [(0.39, Decision.STOP), (0.41, Decision.CONTINUE)]:
        mine = trial(0, 0.0, value)
        assert made("median").decide(mine, [mine, *others]) is decision
    mine = trial(0, 0.0, 0.1)
    assert made("median").decide(mine, [mine, *others[:3]]) is Decision.CONTINUE, "too few"
    late = made("median", min_epochs=3)
    assert late.decide(mine, [mine, *others]) is Decision.CONTINUE, "too early"


def simulate(scheduler: Scheduler, seed: int, budget: float, workers: int = 4) -> tuple[float, float]:
    """Random search over synthetic curves in virtual time: (epochs spent, regret of the best seen).

    A curve rises to its asymptote, 0 at best, at a rate of its own, with a little noise; an
    evaluation takes as long as the trial's speed has it. New trials begin while `budget` epochs last.
    What the scheduler's contract asks of its caller is done here in a few lines.
    """
    rng = np.random.default_rng(seed)
    trials: list[TrialRecord] = []
    curves: list[np.ndarray] = []
    paces: list[float] = []
    clock: list[tuple[float, int]] = []
    spent, best, epochs = 0.0, -math.inf, 9

    def go_on(now: float) -> None:
        number = scheduler.next(trials, more=spent < budget)
        if number is not None:
            trials[number] = replace(trials[number], state=TrialState.RUNNING)
            heapq.heappush(clock, (now + paces[number], number))
        elif spent < budget:
            begin(now)

    def begin(now: float) -> None:
        asymptote, rate = -rng.gamma(2.0, 0.1), rng.uniform(0.3, 1.0)
        noise = rng.normal(scale=0.005, size=epochs)
        curves.append(asymptote - np.exp(-rate * np.arange(1, epochs + 1)) + noise)
        trials.append(trial(len(trials)))
        paces.append(float(rng.uniform(0.5, 2.0)))
        heapq.heappush(clock, (now + paces[-1], len(trials) - 1))

    for _ in range(workers):
        begin(0.0)
    while clock:
        now, number = heapq.heappop(clock)
        done = len(trials[number].results) + 1
        spent += 1
        best = max(best, float(curves[number][done - 1]))
        trials[number] = trial(number, *(float(v) for v in curves[number][:done]))
        decision = scheduler.decide(trials[number], trials)
        if done < epochs and decision is Decision.CONTINUE:
            heapq.heappush(clock, (now + paces[number], number))
            continue
        ends = {Decision.STOP: TrialState.PRUNED, Decision.PAUSE: TrialState.PAUSED}
        trials[number] = replace(trials[number], state=ends.get(decision, TrialState.COMPLETE))
        for _ in range(workers - len(clock)):
            go_on(now)
    assert all(t.state.finished or t.state is TrialState.PAUSED for t in trials)
    assert any(t.state is TrialState.COMPLETE for t in trials)
    return spent, -best


@pytest.mark.parametrize("name", ["auto", "asha", "asha promote"])
def test_halving_finds_more_for_the_same_budget(name: str) -> None:
    budget = 40 * 9.0
    asha = [simulate(made(name), seed, budget) for seed in range(12)]
    fifo = [simulate(made("none"), seed, budget) for seed in range(12)]
    for spent, _ in asha + fifo:
        assert budget <= spent <= budget + 12 * 9
    assert statistics.median(r for _, r in asha) < 0.7 * statistics.median(r for _, r in fifo)
