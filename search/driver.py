"""The one place that acts on a sweep: hands out trials, enters results, obeys the scheduler.

No Ray here: Ray Tune's adapters call it, and so can anything else that runs trials. All
state is in the study; a new driver on the same study goes on where the last one ended.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.progress import Step
from search.records import PhaseRecord, Result, TrialRecord, TrialState
from search.retention import deletable
from search.schedulers import Decision, Scheduler
from search.study import Study
from search.trackers import Run, Tracker
from training.reporter import Course, Evaluation, Progress


class Driver:
    """Runs a sweep's decisions. Safe to call from the Tune loop and the feed's thread at once.

    Args:
        keep: how many of the sweep's best checkpoints stay.
        describe: what a trial's tracked run is labelled with besides its parameters.
    """

    def __init__(
        self,
        *,
        study: Study,
        scheduler: Scheduler,
        tracker: Tracker,
        trials: int,
        keep: int,
        directory: Path,
        sweep_id: str,
        describe: Callable[[TrialRecord], Mapping[str, Any]],
    ) -> None:
        self.study = study
        self._scheduler = scheduler
        self._tracker = tracker
        self._trials = trials
        self._keep = keep
        self._directory = directory
        self._sweep_id = sweep_id
        self._describe = describe
        self._lock = threading.RLock()
        # Trials that an earlier driver left: they go first, each from its newest checkpoint.
        self._orphans = list(study.unfinished())
        self._resumed = {trial.number for trial in self._orphans}
        self._stopped: set[int] = set()
        self.steps: dict[int, Step] = {}
        """Where running trials are between two evaluations."""

    def next_trial(self) -> TrialRecord | None:
        """The next trial to run, drawn just now; None when all are handed out."""
        with self._lock:
            if self._orphans:
                record = self._orphans.pop(0)
            elif len(self.study.trials()) < self._trials:
                record = self.study.ask()
            else:
                return None
            self._tracker.start(
                Run(
                    sweep=self.study.name,
                    sweep_id=self._sweep_id,
                    trial=record.number,
                    directory=self._directory,
                    config={**self._describe(record), **record.params, "seed": record.seed},
                    resumed=record.number in self._resumed,
                )
            )
            return record

    def evaluated(self, number: int, evaluation: Evaluation) -> Decision:
        """Enter an evaluation and decide what becomes of the trial."""
        with self._lock:
            record = self.study.report(
                number,
                Result(
                    epochs=evaluation.epochs,
                    metrics=evaluation.metrics,
                    checkpoint=evaluation.checkpoint,
                    seconds=evaluation.seconds,
                ),
            )
            self._log(number, {**evaluation.metrics, "epochs": evaluation.epochs}, evaluation.examples)
            decision = self._scheduler.decide(record, self.study.trials())
            if decision is Decision.STOP:
                self._stopped.add(number)
            self._clean()
            return decision

    def ended(self, number: int, error: str | None = None, *, kind: str = "failed") -> TrialRecord:
        """Close a trial that ran to its end or was stopped; with `error`, one that failed.

        Args:
            kind: how it failed: `failed`, `diverged` or `infeasible`.
        """
        with self._lock:
            self.steps.pop(number, None)
            state = TrialState.COMPLETE
            if error is not None:
                state = TrialState(kind)
            elif number in self._stopped:
                state = TrialState.PRUNED
            record = self.study.tell(number, state, error)
            best = record.best_result(self.study.metric, self.study.goal)
            if best is not None:
                summary = {f"best/{name}": value for name, value in best.metrics.items()}
                self._tracker.summarize(number, {**summary, "best/epochs": best.epochs})
            self._tracker.finish(number, record.state)
            self._clean()
            return record

    def heard(self, number: int, news: Course | Progress) -> None:
        """Take in what a trial tells between evaluations."""
        with self._lock:
            if self.study.trial(number).state.finished:
                return
            if isinstance(news, Course):
                self.study.record_phases(
                    number,
                    [
                        PhaseRecord(name=p.name, start_epoch=p.start_epoch, thawed=p.thawed)
                        for p in news.phases
                    ],
                )
                self._tracker.summarize(number, {"data_fingerprint": news.data_fingerprint})
                return
            self.steps[number] = Step(
                phase=news.phase, epochs=news.epochs, train_loss=news.metrics.get("train/loss")
            )
            self._log(number, {**news.metrics, "phase": news.phase, "thawed": news.thawed}, news.examples)

    def records(self) -> Sequence[TrialRecord]:
        """All trials, as the ledger has them."""
        with self._lock:
            return self.study.trials()

    def _log(self, number: int, metrics: Mapping[str, Any], examples: int) -> None:
        self._tracker.log(number, metrics, examples=examples)

    def _clean(self) -> None:
        """Delete the checkpoints that nobody needs any more, the ledger last: a crash deletes again."""
        gone = deletable(self.study.trials(), self._keep, self.study.metric, self.study.goal)
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)
        if gone:
            self.study.forget_checkpoints(gone)
