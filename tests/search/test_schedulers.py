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
from search.schedulers.asha import StoppingAsha
from search.schedulers.compute import compute_taken
from search.schedulers.hyperband import Hyperband
from search.schedulers.pasha import Pasha
from search.schedulers.rungs import Ladder
from training.config import (
    DataConfig,
    ModelConfig,
    TaskConfig,
    TrainingConfig,
    TrialConfig,
    UnfreezingConfig,
)

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


def ladder(**settings: Any) -> Ladder:
    return Ladder(**({"metric": METRIC, "goal": "maximize", "epochs": 9, "lowest": 1} | settings))


@pytest.mark.parametrize("factor", [1, 0.5, math.nan])
def test_reduction_factor_must_be_above_one(factor: float) -> None:
    with pytest.raises(ValueError, match=rf"^reduction_factor must be > 1, got {factor}$"):
        ladder(factor=factor)


def test_min_epochs_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match=r"^min_epochs must be > 0, got 0$"):
        ladder(lowest=0)


def test_rungs_start_at_the_first_evaluation_and_end_below_the_full_length() -> None:
    halves = ladder(lowest=0.5)
    assert halves.levels(9) == (0.5, 1.5, 4.5)
    assert halves.levels(4.5) == (0.5, 1.5)
    assert halves.levels(0.5) == ()
    assert ladder(lowest=0.1, factor=2).levels(1) == pytest.approx((0.1, 0.2, 0.4, 0.8))


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


def paused(number: int, *values: float, **params: Any) -> TrialRecord:
    return replace(trial(number, *values, **params), state=TrialState.PAUSED)


def test_promotion_pauses_at_rungs_alone() -> None:
    asha = made("asha promote")
    for length, decision in [(1, "pause"), (2, "continue"), (3, "pause"), (4, "continue"), (9, "continue")]:
        alone = trial(0, *[0.5] * length)
        assert asha.decide(alone, [alone]) == decision
    assert set(decisions(asha, *[[0.1 * i] * 2 for i in range(10)])) == {Decision.CONTINUE}


@pytest.mark.parametrize("arrived", [1, 2, 3, 5, 6, 8, 9, 10, 27])
def test_the_law_of_promotion(arrived: int) -> None:
    """At factor 3, the best floor(n / 3) of n are promoted, the best first, and each once."""
    asha = made("asha promote")
    trials = [paused(i, i / 100) for i in range(arrived)]
    promoted = []
    while (number := asha.next(trials, more=True)) is not None:
        promoted.append(number)
        trials[number] = trial(number, number / 100)
    assert promoted == [*reversed(range(arrived))][: arrived // 3]
    for number in promoted:
        trials[number] = trial(number, *[number / 100] * 2)
    assert asha.next(trials, more=True) is None


def test_the_highest_rung_is_served_first() -> None:
    trials = [*(paused(i, 0.5, 0.5, 0.1 * i) for i in range(3)), *(paused(i, 0.9) for i in range(3, 9))]
    assert made("asha promote").next(trials, more=True) == 2


def test_who_is_promoted_at_once_is_not_paused() -> None:
    waiting = [paused(0, 0.1), paused(1, 0.2)]
    asha = made("asha promote")
    best, worst = trial(2, 0.3), trial(2, 0.0)
    assert asha.decide(best, [*waiting, best]) is Decision.CONTINUE
    assert asha.decide(worst, [*waiting, worst]) is Decision.PAUSE
    assert asha.next([*waiting, paused(2, 0.0)], more=True) == 1, "and another takes its place"


def test_nobody_without_a_value_is_promoted() -> None:
    trials = [paused(i, math.nan) for i in range(9)]
    for more in (True, False):
        assert made("asha promote").next(trials, more=more) is None


def test_without_new_trials_the_best_are_seen_to_their_end() -> None:
    asha = made("asha promote")
    assert asha.next([paused(0, 0.1), paused(1, 0.2)], more=True) is None
    assert asha.next([paused(0, 0.1), paused(1, 0.2)], more=False) == 1
    assert asha.next([paused(0, 0.1), trial(1)], more=False) is None, "who runs may be better"
    far = trial(1, 0.2, 0.2, 0.2)
    assert asha.next([paused(0, 0.3), far], more=False) == 0, "who runs is past that rung"
    assert asha.next([paused(0, 0.1), replace(far, state=TrialState.COMPLETE)], more=False) is None


def test_auto_promotes_one_in_four_from_the_second_evaluation_on() -> None:
    auto = made("auto", epochs=9, evaluations=2)
    alone = trial(0, 0.5, interval=0.5)
    assert auto.decide(alone, [alone]) is Decision.CONTINUE
    alone = trial(0, 0.5, 0.5, interval=0.5)
    assert auto.decide(alone, [alone]) is Decision.PAUSE
    waiting = [paused(i, 0.1 * i) for i in range(4)]
    assert made("auto", epochs=9, min_epochs=1).next(waiting, more=True) == 3
    assert made("auto", epochs=9, min_epochs=1).next(waiting[:3], more=True) is None


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
