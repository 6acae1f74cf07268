"""The one place that acts on a sweep: hands out trials, enters results, obeys the scheduler.

No Ray here: Ray Tune's adapters call it, and so can anything else that runs trials. All
state is in the study; a new driver on the same study goes on where the last one ended.
Whatever ends a sweep before its trials are through (a command, a budget) says so by `end`.

A trial may have several sittings: it is handed out, held or paused at an evaluation, and handed
out again. Whoever runs trials calls `next_trial` whenever a place is free, `evaluated` after
each evaluation, and `ended` when one ran to its end, was stopped or failed; until the sweep is `over`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from search import mirror
from search.budget import Spent
from search.inbox import Command
from search.life import Life, Wanted
from search.progress import Step
from search.records import PhaseRecord, Result, RulingKind, TrialRecord, TrialState
from search.retention import deletable
from search.schedulers import Decision, Scheduler
from search.space import SearchSpace
from search.steering import Helm, obey
from search.study import SpaceExhausted, Study
from search.trackers import Run, Tracker
from training.reporter import Course, Evaluation, Progress

log = logging.getLogger(__name__)

_LATER = (Wanted.PAUSE, Wanted.CANCEL)
_RULINGS: Mapping[Decision, RulingKind] = {Decision.STOP: "stop", Decision.PAUSE: "pause"}


class Driver:
    """Runs a sweep's decisions. Safe to call from the Tune loop and the feed's thread at once.

    Args:
        trials: how many to run, where the ledger does not say otherwise.
        keep: how many of the sweep's best checkpoints stay.
        describe: what a trial's tracked run is labelled with besides its parameters.
        gpus: that one trial holds.
        budget: says which budget is used up, if one is; asked at each evaluation and before each trial.
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
        gpus: float = 0.0,
        budget: Callable[[], Spent | None] | None = None,
    ) -> None:
        self.study = study
        self._scheduler = scheduler
        self._tracker = tracker
        self._trials = trials
        self._keep = keep
        self._directory = directory
        self._sweep_id = sweep_id
        self._describe = describe
        self._gpus = gpus
        self._budget = budget
        self._lock = threading.RLock()
        self._running: set[int] = set()
        self.exhausted = False
        """Whether every point of the space has been tried."""
        self.steps: dict[int, Step] = {}
        """Where running trials are between two evaluations."""
        # Trials that an earlier driver left: they go first, each from its newest checkpoint. Those
        # that it had decided to end only have to be closed.
        left = study.unfinished()
        for trial in left:
            if trial.ending:
                study.tell(trial.number, TrialState.PRUNED)
        self._orphans = [t.number for t in left if not t.ending and (t.state is TrialState.RUNNING or t.held)]
        self._seen = {trial.number for trial in left}
        if not study.atomic:
            self._decide_what_was_left_open()

    def catch_up(self, runs: Collection[int]) -> None:
        """Finish the tracked runs of trials that have ended: the driver that knew died before it said so."""
        with self._lock:
            for record in self.study.trials():
                if record.number in runs and record.state.finished:
                    self._seen.add(record.number)
                    self._track(record)
                    self._summarize(record)

    def _decide_what_was_left_open(self) -> None:
        """Decide on trials whose latest result may have been entered without the decision on it."""
        for number in list(self._orphans):
            trial = self.study.trial(number)
            decided = any(ruling.epochs == trial.epochs for ruling in trial.rulings)
            if trial.last is None or trial.held or decided:
                continue
            decision = self._scheduler.decide(trial, self.study.trials())
            if decision is not Decision.CONTINUE:
                self._orphans.remove(number)
                self.study.rule(number, _RULINGS[decision], self._judge_name)
            if decision is Decision.STOP:
                self.study.tell(number, TrialState.PRUNED)

    @property
    def target(self) -> int:
        """How many trials the sweep is to have."""
        return self.study.target or self._trials

    @property
    def life(self) -> Life:
        """What is wanted of the sweep."""
        return self.study.life

    def end(self, wanted: Wanted, reason: str) -> None:
        """Bring the sweep to its end, as `wanted` says; what ended it stands in the ledger."""
        with self._lock:
            if self.life != Life(wanted=wanted, reason=reason):
                self.study.live(Life(wanted=wanted, reason=reason))
                log.info("the sweep is to %s: %s", wanted, reason)

    def obey(self, command: Command, space: SearchSpace) -> str:
        """Carry out a command on the sweep; what came of it."""
        with self._lock:
            before = set(self._unfinished())
            helm = Helm(study=self.study, space=space, trials=self._trials, running=frozenset(self._running))
            outcome = obey(helm, command)
            log.info("%s: %s", command.kind, outcome)
            for number in before.difference(self._unfinished()) & self._seen:
                self._summarize(self.study.trial(number))  # it waited, and was ended
            return outcome

    def _unfinished(self) -> list[int]:
        return [trial.number for trial in self.study.unfinished()]

    def hold(self) -> None:
        """Enter that the trials which run are cut off, and go on first when the sweep does."""
        with self._lock:
            for number in sorted(self._running):
                record = self.study.rule(number, "hold", self.life.reason)
                self._rise(number)
                self._summarize(record)

    def next_trial(self) -> TrialRecord | None:
        """The next trial to run; None when there is none just now.

        While others run one may come up later, unless the sweep is `over`.
        """
        with self._lock:
            while (record := self._choose()) is not None:
                self._track(record)
                if not record.state.finished:
                    self._running.add(record.number)
                    return record
                self._summarize(record)  # it has the results of another
            return None

    def _choose(self) -> TrialRecord | None:
        """What the budget, left-over trials, the scheduler and the sampler say, in this order."""
        self._account()
        if self.life.wanted is not Wanted.RUN:
            return None
        while self._orphans:
            record = self.study.trial(self._orphans.pop(0))
            if record.state.finished:  # closed by a command
                continue
            return self.study.rule(record.number, "promote", "the sweep goes on") if record.held else record
        more = self._more()
        promoted = self._scheduler.next(self.study.trials(), more=more)
        if promoted is not None:
            return self.study.rule(promoted, "promote", self._judge_name)
        if not more:
            return None
        try:
            return self.study.ask()
        except SpaceExhausted:
            self.exhausted = True
            return self._choose()

    def _account(self) -> None:
        """Bring the sweep to its end where a budget is used up."""
        spent = self._budget() if self._budget is not None else None
        if spent is not None and self.life.wanted is Wanted.RUN:
            self.end(Wanted(spent.then), spent.reason)

    def _more(self) -> bool:
        """Whether a trial is to come that has not begun."""
        return self.study.waiting > 0 or (not self.exhausted and len(self.study.trials()) < self.target)

    def _track(self, record: TrialRecord) -> None:
        """Start the trial's tracked run, or take it up again."""
        resumed = record.number in self._seen
        self._seen.add(record.number)
        verb = "goes on" if resumed else "starts"
        log.info("trial %d %s: %s", record.number, verb, dict(record.params))
        self._tracker.start(
            Run(
                sweep=self.study.name,
                sweep_id=self._sweep_id,
                trial=record.number,
                directory=self._directory,
                config={**self._describe(record), **record.params, "seed": record.seed},
                resumed=resumed,
            )
        )

    @property
    def busy(self) -> bool:
        """Whether trials run."""
        return bool(self._running)

    @property
    def over(self) -> bool:
        """Whether no trial runs and none is to come: then, unless it is to go on later, `finish`."""
        with self._lock:
            if self._running:
                return False
            if self.life.wanted is not Wanted.RUN:
                return True
            if self._orphans or self._more():
                return False
            return self._scheduler.next(self.study.trials(), more=False) is None

    def finish(self) -> None:
        """Close the trials that wait for a promotion that will not come, where the sweep is not to go on."""
        with self._lock:
            if self.life.wanted not in _LATER:
                for trial in self.study.unfinished():
                    if trial.number not in self._running and not trial.held:
                        self._close(trial.number, TrialState.PRUNED)
            self.study.settle()
            self._clean()  # which had to wait while the ledger was out of reach

    def evaluated(self, number: int, evaluation: Evaluation) -> Decision:
        """Enter an evaluation and decide what becomes of the trial; both in one write."""
        with self._lock:
            with self.study.writing():
                before = self.study.trial(number)
                record = self.study.report(number, self._result(before, evaluation))
                self._account()
                decision, ruling, reason = self._judge(before, record, evaluation)
                if ruling is not None:
                    self.study.rule(number, ruling, reason)
            value = evaluation.metrics.get(self.study.metric, math.nan)
            log.info("trial %d: epoch %g, %s %.6g", number, evaluation.epochs, self.study.metric, value)
            if decision is not Decision.CONTINUE:
                log.info("trial %d: %s (%s)", number, decision, reason)
            self._log(number, {**evaluation.metrics, "epochs": evaluation.epochs}, evaluation.examples)
            if decision is Decision.PAUSE:
                self._rise(number)
                self._summarize(self.study.trial(number))
            self._clean()
            return decision

    def _result(self, before: TrialRecord, evaluation: Evaluation) -> Result:
        earlier = [r for r in before.results if r.epochs < evaluation.epochs]
        spent = earlier[-1] if earlier else Result(epochs=0.0, metrics={})
        costs = {**evaluation.costs, "cost/seconds": evaluation.seconds}
        wanted = {o.name: costs[o.name] for o in self.study.objectives if o.name in costs}
        held = self._gpus * max(0.0, evaluation.seconds - spent.seconds)
        return Result(
            epochs=evaluation.epochs,
            metrics={**evaluation.metrics, **wanted},
            checkpoint=evaluation.checkpoint,
            seconds=evaluation.seconds,
            gpu_seconds=spent.gpu_seconds + held,
        )

    def _judge(
        self, before: TrialRecord, record: TrialRecord, evaluation: Evaluation
    ) -> tuple[Decision, RulingKind | None, str]:
        """What becomes of a trial at an evaluation, what is entered of that, and who says so."""
        if evaluation.last:
            return Decision.CONTINUE, None, "it has ended"
        if record.ending:
            return Decision.STOP, None, record.rulings[-1].reason
        life = self.life
        if life.wanted is Wanted.HALT:
            return Decision.STOP, "stop", life.reason
        # One that is told again was decided on when it was told first.
        if not any(result.epochs == evaluation.epochs for result in before.results):
            decision = self._scheduler.decide(record, self.study.trials())
            if decision is not Decision.CONTINUE:
                return decision, _RULINGS[decision], self._judge_name
        if life.wanted in _LATER:
            return Decision.PAUSE, "hold", life.reason
        return Decision.CONTINUE, None, ""

    @property
    def _judge_name(self) -> str:
        return type(self._scheduler).__name__

    def ended(self, number: int, error: str | None = None, *, kind: str = "failed") -> TrialRecord:
        """Close a trial that ran to its end or was stopped; with `error`, one that failed.

        One that was paused or held stays open: its sitting had ended with the decision.

        Args:
            kind: how it failed: `failed`, `diverged` or `infeasible`.
        """
        with self._lock:
            self._rise(number)
            before = self.study.trial(number)
            if before.state is TrialState.PAUSED and error is None:
                return before
            state = TrialState.PRUNED if before.ending else TrialState.COMPLETE
            return self._close(number, state if error is None else TrialState(kind), error)

    def _rise(self, number: int) -> None:
        """End a trial's sitting."""
        self.steps.pop(number, None)
        self._running.discard(number)

    def _close(self, number: int, state: TrialState, error: str | None = None) -> TrialRecord:
        record = self.study.tell(number, state, error)
        log.info("trial %d: %s%s", number, record.state, f": {record.error}" if record.error else "")
        if number in self._seen:
            self._summarize(record)
        self._clean()
        return record

    def _summarize(self, record: TrialRecord) -> None:
        """End the tracked run of a trial whose sitting has ended."""
        best = record.best_result(self.study.metric, self.study.goal)
        if best is not None:
            summary = {f"best/{name}": value for name, value in best.metrics.items()}
            self._tracker.summarize(record.number, {**summary, "best/epochs": best.epochs})
        self._tracker.finish(record.number, record.state)

    def heard(self, number: int, news: Course | Progress) -> None:
        """Take in what a trial tells between evaluations."""
        with self._lock:
            if number not in self._running:  # the feed is drained after the end
                return
            if isinstance(news, Course):
                self.study.record_phases(
                    number,
                    [
                        PhaseRecord(name=p.name, start_epoch=p.start_epoch, thawed=p.thawed)
                        for p in news.phases
                    ],
                )
                self._tracker.summarize(
                    number, {"data_fingerprint": news.data_fingerprint, "resumed_step": news.resumed_step}
                )
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
        if self.study.away:  # then they are out of reach as well
            return
        gone = set()
        study = self.study
        front = {t.number for t in study.pareto()} if len(study.objectives) > 1 else set[int]()
        for location in deletable(study.trials(), self._keep, study.metric, study.goal, front):
            try:
                mirror.delete_checkpoint(location, self._directory)
            except OSError as error:  # tried again at the next evaluation
                log.warning("%s cannot be deleted yet: %s", location, error)
            else:
                gone.add(location)
        if gone:
            self.study.forget_checkpoints(gone)
