"""The driver in virtual time: a loop stands for the trainers; study, scheduler and files are real."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from search.config import SamplerConfig
from search.driver import Driver
from search.life import Life, Wanted
from search.progress import Step
from search.records import PhaseRecord, Ruling, TrialRecord, TrialState
from search.schedulers import Decision, Scheduler
from search.schedulers.asha import PromotingAsha, StoppingAsha
from search.schedulers.fifo import Fifo
from search.schedulers.rungs import Ladder
from search.space import suggest
from search.spec import parse
from search.study import Study
from search.trackers import JsonlTracker, NoTracker, Run, Tracker, Value
from search.trackers.jsonl import open_runs
from training.reporter import Course, Evaluation, PhaseOutline, Progress

METRIC = "eval/accuracy"
SPACE = parse(
    {
        "name": "sweep",
        "model": {"name": "some/model"},
        "data": {"train": "a", "validation": "b"},
        "parameters": {
            "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1},
            "batch_size": {"values": [16, 32, 64]},
            "unfreezing.schedule": {"values": ["head", "top", "full"]},
            "unfreezing.depth": {"min": 1, "max": 6, "when": {"unfreezing.schedule": "top"}},
        },
        "search": {"metric": {"name": METRIC, "goal": "maximize"}},
    }
).space
EPOCHS = 4
LADDER = Ladder(metric=METRIC, goal="maximize", epochs=EPOCHS, lowest=1, factor=2)


@dataclass
class Recorder(NoTracker):
    """A tracker that notes what it is told."""

    runs: dict[int, Run] = field(default_factory=dict)
    logged: list[tuple[int, int, dict[str, Value]]] = field(default_factory=list)
    summaries: dict[int, dict[str, Value]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)

    def start(self, run: Run) -> None:
        self.runs[run.trial] = run

    def log(self, trial: int, metrics: Mapping[str, Value], *, examples: int) -> None:
        self.logged.append((trial, examples, dict(metrics)))

    def summarize(self, trial: int, values: Mapping[str, Value]) -> None:
        self.summaries.setdefault(trial, {}).update(values)

    def finish(self, trial: int, state: str) -> None:
        self.finished[trial] = state


Make = Callable[..., Driver]


@pytest.fixture
def tracker() -> Recorder:
    return Recorder()


@pytest.fixture
def make(tmp_path: Path, tracker: Recorder) -> Make:
    """A driver on the sweep in `directory`; a second call is what `resume` does."""

    def make(
        directory: Path = tmp_path,
        *,
        scheduler: Scheduler | None = None,
        tracker: Tracker = tracker,
        trials: int = 6,
        keep: int = 2,
        seed: int = 3,
        sampler: str = "tpe",
        gpus: float = 0.0,
    ) -> Driver:
        study = Study.open(
            directory / "study.journal",
            name="sweep",
            suggest=partial(suggest, SPACE),
            metric=METRIC,
            goal="maximize",
            sampler=SamplerConfig(type=sampler, startup_trials=3),  # type: ignore[arg-type]
            seed=seed,
        )
        return Driver(
            study=study,
            scheduler=scheduler or Fifo(),
            tracker=tracker,
            trials=trials,
            keep=keep,
            directory=directory,
            sweep_id="id",
            describe=lambda record: {"learning_rate": "the default", "versions": f"of {record.number}"},
            gpus=gpus,
        )

    return make


def quality(params: Mapping[str, Any], epochs: float) -> float:
    return 1 - 0.1 * abs(math.log10(params["learning_rate"]) + 3) - 0.1 / epochs


def evaluation(directory: Path, record: TrialRecord, epochs: float, value: float | None = None) -> Evaluation:
    """An evaluation whose checkpoint is really there."""
    checkpoint = directory / "trials" / f"{record.number:04d}" / f"{epochs:g}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "weights").write_text("w")
    return Evaluation(
        step=round(100 * epochs),
        last=False,
        examples=round(1600 * epochs),
        epochs=epochs,
        phase="full",
        metrics={METRIC: quality(record.params, epochs) if value is None else value, "eval/loss": 0.5},
        checkpoint=str(checkpoint),
        seconds=10 * epochs,
    )


def train(driver: Driver, directory: Path, record: TrialRecord) -> TrialRecord:
    """Trains a trial from where it stands until its sitting ends."""
    for epochs in range(round(record.epochs) + 1, EPOCHS + 1):
        told = replace(evaluation(directory, record, epochs), last=epochs == EPOCHS)
        if driver.evaluated(record.number, told) is not Decision.CONTINUE:
            break
    return driver.ended(record.number)


def run(driver: Driver, directory: Path) -> list[TrialRecord]:
    """One trial at a time, to the end."""
    while record := driver.next_trial():
        train(driver, directory, record)
    assert driver.over
    driver.finish()
    return list(driver.records())


def checkpoints(directory: Path) -> set[str]:
    return {str(path.parent) for path in directory.glob("trials/*/*/weights")}


def test_a_sweep_runs_to_its_end(make: Make, tmp_path: Path, tracker: Recorder) -> None:
    records = run(make(), tmp_path)
    assert [record.number for record in records] == [0, 1, 2, 3, 4, 5]
    assert {record.state for record in records} == {TrialState.COMPLETE}
    assert all([r.epochs for r in record.results] == [1, 2, 3, 4] for record in records)
    assert tracker.finished == dict.fromkeys(range(6), "complete")
    for record in records:
        started = tracker.runs[record.number]
        assert (started.sweep, started.sweep_id, started.directory) == ("sweep", "id", tmp_path)
        assert not started.resumed
        assert started.config == {
            "versions": f"of {record.number}",
            **record.params,
            "seed": record.seed,
        }
        assert tracker.summaries[record.number] == {
            f"best/{METRIC}": record.value(METRIC, "maximize"),
            "best/eval/loss": 0.5,
            "best/epochs": 4,
        }
        logged = [(examples, told["epochs"]) for n, examples, told in tracker.logged if n == record.number]
        assert logged == [(1600, 1), (3200, 2), (4800, 3), (6400, 4)]
    assert make(tracker=Recorder()).next_trial() is None  # and stays there


def test_the_scheduler_is_obeyed(make: Make, tmp_path: Path, tracker: Recorder) -> None:
    records = run(make(scheduler=StoppingAsha(LADDER), trials=12), tmp_path)
    states = [record.state for record in records]
    assert states.count(TrialState.PRUNED) >= 3
    assert states.count(TrialState.COMPLETE) >= 1
    assert all(r.epochs in (1, 2) for r in records if r.state is TrialState.PRUNED)
    assert all(r.epochs == EPOCHS for r in records if r.state is TrialState.COMPLETE)
    assert tracker.finished == {r.number: r.state.value for r in records}
    assert all(f"best/{METRIC}" in tracker.summaries[r.number] for r in records)
    best = max(records, key=lambda r: quality(r.params, EPOCHS))
    assert best.state is TrialState.COMPLETE  # the values are monotonous, so the best one is never stopped


def test_a_failure_is_entered_and_the_sweep_goes_on(make: Make, tmp_path: Path, tracker: Recorder) -> None:
    driver = make(trials=3)
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
    assert tracker.finished == {0: "failed", 1: "failed", 2: "complete"}
    assert f"best/{METRIC}" in tracker.summaries[0]
    assert 1 not in tracker.summaries
    assert driver.study.unfinished() == []


def test_what_was_stopped_and_then_fails_has_failed(make: Make, tmp_path: Path) -> None:
    class Stop:
        def decide(self, trial: TrialRecord, trials: object) -> Decision:
            return Decision.STOP

        def next(self, trials: object, *, more: bool) -> None:
            return None

    driver = make(scheduler=Stop(), trials=2)
    records = []
    for error in ("the process died", None):
        record = driver.next_trial()
        assert record is not None
        assert driver.evaluated(record.number, evaluation(tmp_path, record, 1)) is Decision.STOP
        records.append(driver.ended(record.number, error))
    assert [record.state for record in records] == [TrialState.FAILED, TrialState.PRUNED]


def test_a_new_driver_takes_up_what_the_last_one_left(make: Make, tmp_path: Path, tracker: Recorder) -> None:
    driver = make(trials=4)
    done, half, fresh = (driver.next_trial() for _ in range(3))
    assert done
    assert half
    assert fresh
    train(driver, tmp_path, done)
    driver.evaluated(half.number, evaluation(tmp_path, half, 1))
    driver.evaluated(half.number, evaluation(tmp_path, half, 2))

    seen = Recorder()
    again = make(trials=4, tracker=seen)  # the first one was killed: nothing told it to end
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


def test_only_the_checkpoints_that_are_needed_stay(make: Make, tmp_path: Path) -> None:
    driver = make(trials=6, keep=2)
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


def test_the_same_seed_gives_the_same_sweep(make: Make, tmp_path: Path) -> None:
    def outcome(name: str, seed: int = 3, interrupted: bool = False) -> list[tuple[Any, ...]]:
        directory = tmp_path / name
        asha = partial(StoppingAsha, LADDER)
        driver = make(directory, scheduler=asha(), trials=10, seed=seed)
        if interrupted:
            for _ in range(4):
                record = driver.next_trial()
                assert record is not None
                train(driver, directory, record)
            last = driver.next_trial()
            assert last is not None  # left as soon as it was drawn
            driver = make(directory, scheduler=asha(), trials=10, seed=seed)
        return [
            (r.number, r.params, r.seed, r.state, [(e.epochs, e.metrics) for e in r.results])
            for r in run(driver, directory)
        ]

    first = outcome("a")
    assert outcome("b") == first
    assert outcome("c", interrupted=True) == first
    assert [r[1] for r in outcome("d", seed=4)] != [r[1] for r in first]
    assert len({str(r[1]) for r in first}) == 10


def test_news_between_evaluations(make: Make, tracker: Recorder, tmp_path: Path) -> None:
    driver = make(trials=1)
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
    assert tracker.logged == [
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
    before = (list(tracker.logged), driver.records())
    driver.heard(0, step)  # the feed is drained after the end
    driver.heard(0, Course(phases=(), resumed_step=0, data_fingerprint="f"))
    assert driver.steps == {}
    assert (tracker.logged, driver.records()) == before


def test_two_threads_at_once(make: Make, tmp_path: Path) -> None:
    driver = make(trials=8, sampler="random")
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


@pytest.mark.parametrize("wanted", [None, Wanted.PAUSE, Wanted.DRAIN, Wanted.HALT, Wanted.CANCEL])
def test_paused_trials_are_promoted_or_closed_at_the_end(
    make: Make, tmp_path: Path, tracker: Recorder, wanted: Wanted | None
) -> None:
    driver = make(scheduler=PromotingAsha(LADDER), trials=8)
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
        ended = train(driver, tmp_path, running)
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
        driver = make(scheduler=PromotingAsha(LADDER), trials=8)
        driver.end(Wanted.RUN, "resumed")
        first = driver.next_trial()
        assert first is not None
        assert first.number == running.number  # what was held goes first, no scheduler asked
        train(driver, tmp_path, first)
    records = run(driver, tmp_path)
    assert len(records) == 8
    assert {t.state for t in records} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert tracker.finished == {t.number: t.state.value for t in records}
    for trial in records:
        decisions = [(r.decision, r.epochs) for r in trial.rulings if r.decision != "hold"]
        rungs = [level for level in (1.0, 2.0) if level <= trial.epochs]
        pauses = [epochs for decision, epochs in decisions if decision == "pause"]
        assert set(pauses) <= set(rungs)
        assert len(pauses) == len(set(pauses))  # never twice at one rung
    best = max(records, key=lambda r: quality(r.params, EPOCHS))
    assert best.state is TrialState.COMPLETE


def test_what_was_stopped_does_not_run_on_after_a_kill(make: Make, tmp_path: Path) -> None:
    class Stop(Fifo):
        def decide(self, trial: TrialRecord, trials: object) -> Decision:
            return Decision.STOP

    driver = make(scheduler=Stop(), trials=1)
    record = driver.next_trial()
    assert record is not None
    assert driver.evaluated(record.number, evaluation(tmp_path, record, 1)) is Decision.STOP
    again = make(trials=1)  # killed before the trial had ended
    assert again.next_trial() is None
    assert again.over
    assert [(t.state, t.epochs) for t in again.records()] == [(TrialState.PRUNED, 1)]
    assert again.records()[0].rulings == (Ruling(decision="stop", epochs=1, reason="Stop"),)


def test_what_is_told_again_after_a_pause_is_not_decided_again(make: Make, tmp_path: Path) -> None:
    driver = make(scheduler=PromotingAsha(LADDER), trials=3)
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


def test_gpu_seconds_add_up_over_sittings(make: Make, tmp_path: Path) -> None:
    driver = make(trials=1, gpus=2.0)
    record = driver.next_trial()
    assert record is not None
    for epochs in (1, 2):
        driver.evaluated(record.number, evaluation(tmp_path, record, epochs))
    again = make(trials=1, gpus=1.0)  # resumed with fewer
    record = again.next_trial()
    assert record is not None
    again.evaluated(record.number, evaluation(tmp_path, record, 2))  # told again, not counted again
    again.evaluated(record.number, evaluation(tmp_path, record, 3))
    (trial,) = again.records()
    assert (trial.seconds, trial.gpu_seconds) == (30, 2 * 10 + 1 * 10 + 1 * 10)


def test_runs_that_a_dead_driver_left_open_are_finished(make: Make, tmp_path: Path) -> None:
    driver = make(trials=3, tracker=JsonlTracker())
    done, killed, running = (driver.next_trial() for _ in range(3))
    assert done
    assert killed
    assert running
    train(driver, tmp_path, done)
    driver.evaluated(killed.number, evaluation(tmp_path, killed, 1))
    driver.study.tell(killed.number, TrialState.FAILED, "killed just then")  # and no tracker heard of it
    assert open_runs(tmp_path) == {1, 2}
    again = make(trials=3, tracker=JsonlTracker())
    again.catch_up(open_runs(tmp_path))
    assert open_runs(tmp_path) == {2}
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    of = [event for event in told if event["trial"] == 1]
    assert [event["kind"] for event in of][-3:] == ["start", "summary", "finish"]
    assert of[-3]["resumed"]
    assert of[-1]["state"] == "failed"
