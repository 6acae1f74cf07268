"""Retention: the best of the sweep and what running trials need stay; all else goes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.records import Goal, Result, TrialRecord, TrialState
from search.retention import deletable


def trial(number: int, *values: float, state: TrialState = TrialState.COMPLETE) -> TrialRecord:
    """A trial with these values; evaluation e has checkpoint `NUMBER/e`."""
    results = tuple(
        Result(epochs=i + 1, metrics={"m": value}, checkpoint=f"{number}/{i + 1}")
        for i, value in enumerate(values)
    )
    return TrialRecord(number=number, state=state, params={}, seed=0, results=results)


def test_the_best_checkpoints_of_the_top_trials_stay() -> None:
    trials = [trial(0, 0.5, 0.9, 0.7), trial(1, 0.8), trial(2, 0.6, 0.85, state=TrialState.PRUNED)]
    assert deletable(trials, 2, "m", "maximize") == {"0/1", "0/3", "1/1", "2/1"}
    assert deletable(trials, 1, "m", "minimize") == {"0/2", "0/3", "1/1", "2/1", "2/2"}


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.PAUSED])
def test_unfinished_trials_keep_best_and_latest(state: TrialState) -> None:
    trials = [trial(0, 0.9), trial(1, 0.1, 0.3, 0.2, 0.1, state=state)]
    assert deletable(trials, 1, "m", "maximize") == {"1/1", "1/3"}


def test_a_running_trial_may_hold_one_of_the_top_places() -> None:
    trials = [trial(0, 0.5), trial(1, 0.9, state=TrialState.RUNNING)]
    assert deletable(trials, 1, "m", "maximize") == {"0/1"}


def test_trials_without_a_value_hold_no_place() -> None:
    trials = [
        trial(0, math.nan, state=TrialState.FAILED),
        trial(1, 0.5),
        trial(2, math.nan, math.nan, state=TrialState.RUNNING),
        trial(3, state=TrialState.FAILED),
    ]
    assert deletable(trials, 1, "m", "maximize") == {"0/1", "2/1"}


def test_equals_rank_by_number_and_earlier_evaluations_first() -> None:
    assert deletable([trial(0, 0.5, 0.5), trial(1, 0.5)], 1, "m", "maximize") == {"0/2", "1/1"}


def test_the_best_checkpoints_of_the_front_stay() -> None:
    trials = [trial(0, 0.5, 0.9), trial(1, 0.6, 0.4), trial(2, 0.7)]
    assert deletable(trials, 1, "m", "maximize", front={1}) == {"0/1", "1/2", "2/1"}


def test_what_is_deleted_already_is_not_named() -> None:
    first = trial(0, 0.5, 0.9)
    gone = replace(first, results=(replace(first.results[0], checkpoint=None), first.results[1]))
    assert deletable([gone, trial(1, 0.6)], 1, "m", "maximize") == {"1/1"}


def test_a_checkpoint_that_two_trials_name_stays_while_one_needs_it() -> None:
    first, clone = trial(0, 0.5), trial(1, 0.4)
    clone = replace(clone, results=(replace(clone.results[0], checkpoint="0/1"),))
    assert deletable([first, clone], 1, "m", "maximize") == set()


@settings(max_examples=60, deadline=None)
@given(
    curves=st.lists(
        st.tuples(st.lists(st.floats(allow_infinity=True), max_size=4), st.sampled_from(list(TrialState))),
        max_size=8,
    ),
    keep=st.integers(1, 4),
    goal=st.sampled_from(["maximize", "minimize"]),
)
def test_deleting_step_by_step_ends_where_deleting_at_once_does(
    curves: list[tuple[list[float], TrialState]], keep: int, goal: Goal
) -> None:
    """As evaluations come in, nothing is deleted that would be kept at the end."""
    gone: set[str] = set()
    whole = [trial(i, *values, state=state) for i, (values, state) in enumerate(curves)]

    def so_far(count: int) -> list[TrialRecord]:
        seen = []
        for t in whole:
            some = tuple(
                replace(r, checkpoint=None) if r.checkpoint in gone else r for r in t.results[:count]
            )
            state = t.state if count >= len(t.results) else TrialState.RUNNING
            seen.append(replace(t, results=some, state=state))
        return seen

    for count in range(5):
        gone |= deletable(so_far(count), keep, "m", goal)
    assert gone == deletable(whole, keep, "m", goal)
