"""The driver in virtual time: a loop stands for the trainers; study, scheduler and files are real."""

from __future__ import annotations

import threading
from pathlib import Path

from search.life import Wanted
from search.progress import Step
from search.records import PhaseRecord, TrialRecord, TrialState
from search.schedulers import Decision
from search.schedulers.asha import StoppingAsha
from search.study import Study
from tests.search.driving import (
    EPOCHS,
    LADDER,
    METRIC,
    Make,
    Recorder,
    checkpoints,
    evaluation,
    quality,
    run,
    train,
)
from training.reporter import Course, PhaseOutline, Progress


def test_a_sweep_runs_to_its_end(make_driver: Make, tmp_path: Path, recorder: Recorder) -> None:
    records = run(make_driver(), tmp_path)
    assert [record.number for record in records] == [0, 1, 2, 3, 4, 5]
    assert {record.state for record in records} == {TrialState.COMPLETE}
    assert all([r.epochs for r in record.results] == [1, 2, 3, 4] for record in records)
    assert recorder.finished == dict.fromkeys(range(6), "complete")
    for record in records:
        started = recorder.runs[record.number]
        assert (started.sweep, started.sweep_id, started.directory) == ("sweep", "id", tmp_path)
        assert not started.resumed
        assert started.config == {
            "versions": f"of {record.number}",
            **record.params,
            "seed": record.seed,
        }
        assert recorder.summaries[record.number] == {
            f"best/{METRIC}": record.value(METRIC, "maximize"),
            "best/eval/loss": 0.5,
            "best/epochs": 4,
        }
        logged = [(examples, told["epochs"]) for n, examples, told in recorder.logged if n == record.number]
        assert logged == [(1600, 1), (3200, 2), (4800, 3), (6400, 4)]
    assert make_driver(tracker=Recorder()).next_trial() is None  # and stays there


def test_the_scheduler_is_obeyed(make_driver: Make, tmp_path: Path, recorder: Recorder) -> None:
    records = run(make_driver(scheduler=StoppingAsha(LADDER), trials=12), tmp_path)
    states = [record.state for record in records]
    assert states.count(TrialState.PRUNED) >= 3
    assert states.count(TrialState.COMPLETE) >= 1
    assert all(r.epochs in (1, 2) for r in records if r.state is TrialState.PRUNED)
    assert all(r.epochs == EPOCHS for r in records if r.state is TrialState.COMPLETE)
    assert recorder.finished == {r.number: r.state.value for r in records}
    assert all(f"best/{METRIC}" in recorder.summaries[r.number] for r in records)
    best = max(records, key=lambda r: quality(r.params, EPOCHS))
    assert best.state is TrialState.COMPLETE  # the values are monotonous, so the best one is never stopped


def test_a_failure_is_entered_and_the_sweep_goes_on(
    make_driver: Make, tmp_path: Path, recorder: Recorder
) -> None:
    driver = make_driver(trials=3)
    first = driver.next_trial()
    assert first is not None
    driver.evaluated(first.number, evaluation(tmp_path, first, 1))
    failed = driver.ended(first.number, "OutOfMemory: of 3 GB\n  at line 7")
    assert (failed.state, failed.error) == (TrialState.FAILED, "OutOfMemory: of 3 GB")
    second = driver.next_trial()
    assert second is not None
    nothing = driver.ended(second.number)  # no evaluation: there is nothing to rank it by
    assert nothing.state is TrialState.FAILED
    assert METRIC in (nothing.error or "")
    assert [record.state for record in run(driver, tmp_path)][2:] == [TrialState.COMPLETE]
    assert recorder.finished == {0: "failed", 1: "failed", 2: "complete"}
    assert f"best/{METRIC}" in recorder.summaries[0]
    assert 1 not in recorder.summaries
    assert driver.study.unfinished() == []


def test_what_was_stopped_and_then_fails_has_failed(make_driver: Make, tmp_path: Path) -> None:
    class Stop:
        def decide(self, trial: TrialRecord, trials: object) -> Decision:
            return Decision.STOP

        def next(self, trials: object, *, more: bool) -> None:
            return None

    driver = make_driver(scheduler=Stop(), trials=2)
    records = []
    for error in ("the process died", None):
        record = driver.next_trial()
        assert record is not None
        assert driver.evaluated(record.number, evaluation(tmp_path, record, 1)) is Decision.STOP
        records.append(driver.ended(record.number, error))
    assert [record.state for record in records] == [TrialState.FAILED, TrialState.PRUNED]


def test_only_the_checkpoints_that_are_needed_stay(make_driver: Make, tmp_path: Path) -> None:
    driver = make_driver(trials=6, keep=2)
    running = driver.next_trial()
    assert running is not None
    # Its best is the first and its latest the third: both are needed until it ends.
    for epochs, value in ((1, 0.3), (2, 0.2), (3, 0.1)):
        driver.evaluated(running.number, evaluation(tmp_path, running, epochs, value))
    own = {str(tmp_path / "trials" / "0000" / name) for name in ("1", "3")}
    assert checkpoints(tmp_path) == own
    while record := driver.next_trial():
        train(driver, tmp_path, record)
    ended = sorted(
        (r for r in driver.records() if r.state.finished), key=lambda r: -(r.value(METRIC, "maximize") or 0)
    )
    best = {str(r.best_result(METRIC, "maximize").checkpoint) for r in ended[:2]}  # type: ignore[union-attr]
    assert checkpoints(tmp_path) == own | best
    driver.ended(running.number)
    assert checkpoints(tmp_path) == best
    named = {r.checkpoint for t in driver.records() for r in t.results if r.checkpoint}
    assert named == best  # the ledger names what is there, and nothing else
    read = Study.read(tmp_path / "study.journal").trials()
    assert {r.checkpoint for t in read for r in t.results if r.checkpoint} == best


def test_news_between_evaluations(make_driver: Make, recorder: Recorder, tmp_path: Path) -> None:
    driver = make_driver(trials=1)
    record = driver.next_trial()
    assert record is not None
    outline = PhaseOutline(name="top-2", start_epoch=0.0, thawed="head + blocks 4-5")
    driver.heard(0, Course(phases=(outline,), resumed_step=0, data_fingerprint="f"))
    step = Progress(
        step=10,
        examples=160,
        epochs=0.1,
        phase="top-2",
        thawed="head + blocks 4-5",
        metrics={"train/loss": 0.6, "learning_rate/head": 1e-4},
    )
    driver.heard(0, step)
    assert driver.records()[0].phases == (
        PhaseRecord(name="top-2", start_epoch=0.0, thawed="head + blocks 4-5"),
    )
    assert driver.steps == {0: Step(phase="top-2", epochs=0.1, train_loss=0.6)}
    assert recorder.logged == [
        (
            0,
            160,
            {
                "train/loss": 0.6,
                "learning_rate/head": 1e-4,
                "phase": "top-2",
                "thawed": "head + blocks 4-5",
            },
        )
    ]
    train(driver, tmp_path, record)
    assert driver.steps == {}
    before = (list(recorder.logged), driver.records())
    driver.heard(0, step)  # the feed is drained after the end
    driver.heard(0, Course(phases=(), resumed_step=0, data_fingerprint="f"))
    assert driver.steps == {}
    assert (recorder.logged, driver.records()) == before


def test_two_threads_at_once(make_driver: Make, tmp_path: Path) -> None:
    driver = make_driver(trials=8, sampler="random")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while record := driver.next_trial():
                driver.heard(
                    record.number,
                    Progress(step=1, examples=1, epochs=0.1, phase="p", thawed="all", metrics={}),
                )
                train(driver, tmp_path, record)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [r.number for r in driver.records()] == list(range(8))
    assert {r.state for r in driver.records()} == {TrialState.COMPLETE}
    assert len(checkpoints(tmp_path)) == 2


def test_a_pause_spares_no_trial_the_schedulers_decision(make_driver: Make, tmp_path: Path) -> None:
    """One that is held at a rung would pass it, as nobody decides on what is told again."""
    driver = make_driver(scheduler=StoppingAsha(LADDER), trials=3)
    good, bad, fresh = (driver.next_trial() for _ in range(3))
    assert good is not None
    assert bad is not None
    assert fresh is not None
    driver.evaluated(good.number, evaluation(tmp_path, good, 1, 0.9))
    driver.end(Wanted.PAUSE, "thaw pause")
    assert driver.evaluated(bad.number, evaluation(tmp_path, bad, 1, 0.1)) is Decision.STOP
    assert driver.ended(bad.number).state is TrialState.PRUNED
    assert driver.evaluated(fresh.number, evaluation(tmp_path, fresh, 1, 0.95)) is Decision.PAUSE
    assert driver.ended(fresh.number).held
    assert driver.evaluated(good.number, evaluation(tmp_path, good, 2, 0.9)) is Decision.PAUSE
    assert driver.ended(good.number).held
    assert driver.over

    again = make_driver(scheduler=StoppingAsha(LADDER), trials=3)
    again.end(Wanted.RUN, "")
    assert {trial.number for trial in run(again, tmp_path) if trial.state is TrialState.COMPLETE} >= {0}
