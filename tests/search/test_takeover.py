"""A driver that takes up what another one left: after a kill, a pause, or a promotion."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from search.life import Life, Wanted
from search.records import Ruling, TrialRecord, TrialState
from search.schedulers import Decision
from search.schedulers.asha import PromotingAsha, StoppingAsha
from search.schedulers.fifo import Fifo
from search.trackers import JsonlTracker
from search.trackers.jsonl import open_runs
from tests.search.driving import (
    EPOCHS,
    LADDER,
    Make,
    Recorder,
    evaluation,
    quality,
    run,
    train,
)


def test_a_new_driver_takes_up_what_the_last_one_left(
    make_driver: Make, tmp_path: Path, recorder: Recorder
) -> None:
    driver = make_driver(trials=4)
    done, half, fresh = (driver.next_trial() for _ in range(3))
    assert done
    assert half
    assert fresh
    train(driver, tmp_path, done)
    driver.evaluated(half.number, evaluation(tmp_path, half, 1))
    driver.evaluated(half.number, evaluation(tmp_path, half, 2))

    seen = Recorder()
    again = make_driver(trials=4, tracker=seen)  # the first one was killed: nothing told it to end
    assert sorted(seen.runs) == []
    taken = [again.next_trial() for _ in range(4)]
    assert [record.number for record in taken if record] == [half.number, fresh.number, 3]
    assert [seen.runs[n].resumed for n in (half.number, fresh.number, 3)] == [True, True, False]
    orphan = taken[0]
    assert orphan is not None
    assert (orphan.params, orphan.seed, orphan.epochs) == (half.params, half.seed, 2)
    assert orphan.checkpoint == str(tmp_path / "trials" / "0001" / "2")
    assert Path(orphan.checkpoint).is_dir()
    for record in taken:
        if record is not None:
            train(again, tmp_path, record)
    assert [(r.state, r.epochs) for r in again.records()] == [(TrialState.COMPLETE, EPOCHS)] * 4
    assert [r.epochs for r in again.records()[1].results] == [1, 2, 3, 4]


def test_the_same_seed_gives_the_same_sweep(make_driver: Make, tmp_path: Path) -> None:
    def outcome(name: str, seed: int = 3, interrupted: bool = False) -> list[tuple[Any, ...]]:
        directory = tmp_path / name
        asha = partial(StoppingAsha, LADDER)
        driver = make_driver(directory, scheduler=asha(), trials=10, seed=seed)
        if interrupted:
            for _ in range(4):
                record = driver.next_trial()
                assert record is not None
                train(driver, directory, record)
            last = driver.next_trial()
            assert last is not None  # left as soon as it was drawn
            driver = make_driver(directory, scheduler=asha(), trials=10, seed=seed)
        return [
            (r.number, r.params, r.seed, r.state, [(e.epochs, e.metrics) for e in r.results])
            for r in run(driver, directory)
        ]

    first = outcome("a")
    assert outcome("b") == first
    assert outcome("c", interrupted=True) == first
    assert [r[1] for r in outcome("d", seed=4)] != [r[1] for r in first]
    assert len({str(r[1]) for r in first}) == 10


def test_what_was_stopped_does_not_run_on_after_a_kill(make_driver: Make, tmp_path: Path) -> None:
    class Stop(Fifo):
        def decide(self, trial: TrialRecord, trials: object) -> Decision:
            return Decision.STOP

    driver = make_driver(scheduler=Stop(), trials=1)
    record = driver.next_trial()
    assert record is not None
    assert driver.evaluated(record.number, evaluation(tmp_path, record, 1)) is Decision.STOP
    again = make_driver(trials=1)  # killed before the trial had ended
    assert again.next_trial() is None
    assert again.over
    assert [(t.state, t.epochs) for t in again.records()] == [(TrialState.PRUNED, 1)]
    assert again.records()[0].rulings == (Ruling(decision="stop", epochs=1, reason="Stop"),)


def test_what_is_told_again_after_a_pause_is_not_decided_again(make_driver: Make, tmp_path: Path) -> None:
    driver = make_driver(scheduler=PromotingAsha(LADDER), trials=3)
    told = {}
    for _ in range(2):
        record = driver.next_trial()
        assert record is not None
        told[record.number] = evaluation(tmp_path, record, 1)
        assert driver.evaluated(record.number, told[record.number]) is Decision.PAUSE
    promoted = driver.next_trial()
    assert promoted is not None
    assert promoted.state is TrialState.RUNNING
    # The trainer goes on from the checkpoint and tells its evaluation once more.
    assert driver.evaluated(promoted.number, told[promoted.number]) is Decision.CONTINUE
    assert [r.epochs for r in driver.study.trial(promoted.number).results] == [1]


def test_gpu_seconds_add_up_over_sittings(make_driver: Make, tmp_path: Path) -> None:
    driver = make_driver(trials=1, gpus=2.0)
    record = driver.next_trial()
    assert record is not None
    for epochs in (1, 2):
        driver.evaluated(record.number, evaluation(tmp_path, record, epochs))
    again = make_driver(trials=1, gpus=1.0)  # resumed with fewer
    record = again.next_trial()
    assert record is not None
    again.evaluated(record.number, evaluation(tmp_path, record, 2))  # told again, not counted again
    again.evaluated(record.number, evaluation(tmp_path, record, 3))
    (trial,) = again.records()
    assert (trial.seconds, trial.gpu_seconds) == (30, 2 * 10 + 1 * 10 + 1 * 10)


def test_runs_that_a_dead_driver_left_open_are_finished(make_driver: Make, tmp_path: Path) -> None:
    driver = make_driver(trials=3, tracker=JsonlTracker())
    done, killed, running = (driver.next_trial() for _ in range(3))
    assert done
    assert killed
    assert running
    train(driver, tmp_path, done)
    driver.evaluated(killed.number, evaluation(tmp_path, killed, 1))
    driver.study.tell(killed.number, TrialState.FAILED, "killed just then")  # and no tracker heard of it
    assert open_runs(tmp_path) == {1, 2}
    again = make_driver(trials=3, tracker=JsonlTracker())
    again.catch_up(open_runs(tmp_path))
    assert open_runs(tmp_path) == {2}
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    of = [event for event in told if event["trial"] == 1]
    assert [event["kind"] for event in of][-3:] == ["start", "summary", "finish"]
    assert of[-3]["resumed"]
    assert of[-1]["state"] == "failed"


@pytest.mark.parametrize("wanted", [None, Wanted.PAUSE, Wanted.DRAIN, Wanted.HALT, Wanted.CANCEL])
def test_paused_trials_are_promoted_or_closed_at_the_end(
    make_driver: Make, tmp_path: Path, recorder: Recorder, wanted: Wanted | None
) -> None:
    driver = make_driver(scheduler=PromotingAsha(LADDER), trials=8)
    for _ in range(5):
        record = driver.next_trial()
        assert record is not None
        train(driver, tmp_path, record)
    assert any(t.state is TrialState.PAUSED for t in driver.records())
    if wanted is not None:
        running = driver.next_trial()
        assert running is not None
        driver.end(wanted, "the test")
        assert not driver.over  # one runs
        assert driver.next_trial() is None
        # Below the rungs, so that it is not the scheduler who holds it.
        if driver.evaluated(running.number, evaluation(tmp_path, running, 0.5)) is Decision.CONTINUE:
            ended = train(driver, tmp_path, running)
        else:
            ended = driver.ended(running.number)
        assert (ended.state is TrialState.PAUSED) == (wanted is not Wanted.HALT)
        assert driver.over
        driver.finish()
        states = {t.state for t in driver.records()}
        if wanted in (Wanted.DRAIN, Wanted.HALT):
            assert TrialState.PAUSED not in states
            assert TrialState.PRUNED in states
            return
        assert TrialState.PAUSED in states
        assert driver.study.trial(running.number).held
        assert driver.life == Life(wanted=wanted, reason="the test")
        driver = make_driver(scheduler=PromotingAsha(LADDER), trials=8)
        driver.end(Wanted.RUN, "resumed")
        first = driver.next_trial()
        assert first is not None
        assert first.number == running.number  # what was held goes first, no scheduler asked
        train(driver, tmp_path, first)
    records = run(driver, tmp_path)
    assert len(records) == 8
    assert {t.state for t in records} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert recorder.finished == {t.number: t.state.value for t in records}
    for trial in records:
        decisions = [(r.decision, r.epochs) for r in trial.rulings if r.decision != "hold"]
        rungs = [level for level in (1.0, 2.0) if level <= trial.epochs]
        pauses = [epochs for decision, epochs in decisions if decision == "pause"]
        assert set(pauses) <= set(rungs)
        assert len(pauses) == len(set(pauses))  # never twice at one rung
    best = max(records, key=lambda r: quality(r.params, EPOCHS))
    assert best.state is TrialState.COMPLETE
