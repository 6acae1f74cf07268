"""The law of successive halving: who goes on at a rung, who is paused and who is promoted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from search.records import TrialState
from search.schedulers import Decision
from tests.search.curves import decisions, ladder, made, paused, trial


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
