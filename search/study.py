"""The Optuna study as the ledger of a sweep: ask, report, tell, and everything that can be read from it.

Each trial of the ledger is a trial of a plain Optuna study, with user attributes for what Optuna has no
field for: `state` (finer than Optuna's), `params`, `seed`, `phases`, `error`, and `result:STEP`, one for each
evaluation. STEP is in ten-thousandths of an epoch, the finest interval between evaluations
that the settings allow; intermediate values stand at the same steps.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search.config import SamplerConfig
from search.ledger import Journal, derived_seed, to_record
from search.records import Goal, PhaseRecord, Result, TrialRecord, TrialState, ranked
from search.samplers import make_sampler

__all__ = ["Goal", "PhaseRecord", "Result", "Study", "Suggest", "TrialRecord", "TrialState", "derived_seed"]

Suggest = Callable[[optuna.Trial], Mapping[str, Any]]
"""Draws the active parameters of a trial, define-by-run."""

STEPS_PER_EPOCH = 10_000

# What Optuna, and with it every sampler, is told. PRUNED without values ranks below all others,
# so samplers learn to avoid what is infeasible; FAIL they ignore.
_TOLD = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.DIVERGED: OptunaState.PRUNED,
    TrialState.INFEASIBLE: OptunaState.PRUNED,
}


class Study:
    """The ledger of one sweep. Safe to use from several threads, and beside other processes."""

    def __init__(
        self, path: Path, *, suggest: Suggest | None = None, sampler: SamplerConfig | None = None
    ) -> None:
        """Use `open` or `read`."""
        self.path = path
        self._suggest = suggest
        self._sampler = sampler
        self._lock = threading.RLock()
        self._journal = Journal(path)
        # Of finished trials, which cannot change any more, but for the list of deleted checkpoints.
        self._records: dict[int, tuple[TrialRecord, list[str] | None]] = {}

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        name: str,
        suggest: Suggest,
        metric: str,
        goal: Goal,
        sampler: SamplerConfig,
        seed: int,
        create: bool = True,
    ) -> Study:
        """Open the ledger at `path` to go on with it; make it when it is missing and `create` is set.

        Raises:
            ValueError: there is no ledger, or it was made with another metric, goal, sampler or seed.
            OSError: the place is not readable or writable.
        """
        _quiet()
        make_sampler(sampler, 0)  # an unknown one fails here, before anything is made
        if not path.exists():
            if not create:
                raise ValueError(f"{path}: there is no study; start the sweep with `run` first")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        study = cls(path, suggest=suggest, sampler=sampler)
        wanted = {"metric": metric, "goal": goal, "sampler": sampler.type, "seed": seed}
        with study._journal.transaction():
            study._load(name, wanted)
        for key, value in wanted.items():
            if study._made.get(key) != value:
                raise ValueError(f"{path}: made with {key} {study._made.get(key)!r}, got {value!r}")
        study._close_half_asked()
        return study

    @classmethod
    def read(cls, path: Path) -> Study:
        """Open the ledger at `path` to read only.

        Raises:
            ValueError: there is no ledger at `path`.
        """
        _quiet()
        if not path.exists():
            raise ValueError(f"{path}: there is no study; start the sweep with `run` first")
        study = cls(path)
        study._load(None, None)
        return study

    def _load(self, name: str | None, make: Mapping[str, Any] | None) -> None:
        """Read the journal afresh; with `make`, create the study within the open transaction."""
        self._storage = optuna.storages.JournalStorage(self._journal)
        studies = self._storage.get_all_studies()
        if not studies and make is not None:
            direction = make["goal"]
            created = optuna.create_study(storage=self._storage, study_name=name, direction=direction)
            created.set_metric_names([make["metric"]])
            for key, value in make.items():
                created.set_user_attr(key, value)
        elif not studies:
            raise ValueError(f"{self.path}: the study is empty; start the sweep with `run` first")
        else:
            name = studies[0].study_name
        # A sampler is made for each `ask`; this one only spares Optuna making its own.
        idle = optuna.samplers.RandomSampler(seed=0)
        self._study = optuna.load_study(study_name=name, storage=self._storage, sampler=idle)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._made = self._study.user_attrs
        if not {"metric", "goal", "sampler", "seed"} <= self._made.keys():
            raise ValueError(f"{self.path}: an Optuna study, but not one of a Thaw sweep")

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self._study.study_name

    @property
    def metric(self) -> str:
        """Full name of the metric that trials are compared by."""
        return str(self._made["metric"])

    @property
    def goal(self) -> Goal:
        """Whether more or less of the metric is better."""
        return "maximize" if self._made["goal"] == "maximize" else "minimize"

    @property
    def seed(self) -> int:
        """The sweep's seed."""
        return int(self._made["seed"])

    # Writing

    def ask(self) -> TrialRecord:
        """Draw the next trial and enter it as running, all in one write.

        The draw is a function of the sweep's seed, the trial's number and the ledger so far.
        """
        assert self._suggest is not None, "opened to read only"
        assert self._sampler is not None, "opened to read only"
        with self._transaction():
            trials = self._frozen()
            waiting = (t.number for t in trials if t.state == OptunaState.WAITING)  # asked for by hand
            number = next(waiting, len(trials))
            self._study.sampler = make_sampler(self._sampler, derived_seed(self.seed, number, "sampler"))
            trial = self._study.ask()
            assert trial.number == number
            params = {key: _plain(value) for key, value in self._suggest(trial).items()}
            trial.set_user_attr("seed", derived_seed(self.seed, number, "trial"))
            trial.set_user_attr("params", params)
            return self._record(self._frozen()[number])

    def report(self, number: int, result: Result) -> TrialRecord:
        """Enter an evaluation of an unfinished trial. The same epochs again replace what was there."""
        step = round(result.epochs * STEPS_PER_EPOCH)
        with self._transaction():
            trial_id = self._unfinished_id(number)
            self._storage.set_trial_user_attr(trial_id, f"result:{step}", result.to_json())
            deleted = self._deleted(number)
            if result.checkpoint in deleted:  # written again
                self._study.set_user_attr(f"deleted:{number}", sorted(deleted - {result.checkpoint}))
            value = result.metrics.get(self.metric, math.nan)
            if math.isfinite(value):  # Optuna's views and samplers take numbers only
                self._storage.set_trial_intermediate_value(trial_id, step, float(value))
            return self._record(self._frozen()[number])

    def record_phases(self, number: int, phases: Iterable[PhaseRecord]) -> None:
        """Enter the unfreezing phases of an unfinished trial, in place of those before."""
        listed = [{"name": p.name, "start_epoch": p.start_epoch, "thawed": p.thawed} for p in phases]
        with self._transaction():
            self._storage.set_trial_user_attr(self._unfinished_id(number), "phases", listed)

    def pause(self, number: int) -> None:
        """Mark a running trial as paused, to go on at its latest checkpoint."""
        with self._transaction():
            self._storage.set_trial_user_attr(self._unfinished_id(number), "state", TrialState.PAUSED)

    def resume(self, number: int) -> None:
        """Mark a paused trial as running."""
        with self._transaction():
            self._storage.set_trial_user_attr(self._unfinished_id(number), "state", TrialState.RUNNING)

    def tell(self, number: int, state: TrialState, error: str | None = None) -> TrialRecord:
        """Close a trial. Telling the same state again changes nothing.

        A complete trial is told with its best value; one without a finite value has failed. A
        pruned one is told with its intermediate values. Of `error`, the first line is kept.
        """
        assert state.finished, f"tell takes a final state, got {state}"
        with self._transaction():
            before = self.trial(number)
            value = before.value(self.metric, self.goal)
            if state is TrialState.COMPLETE and value is None:
                state, error = TrialState.FAILED, error or f"no finite value of {self.metric}"
            if before.state.finished:
                assert before.state == state, f"trial {number} is {before.state} and cannot become {state}"
                return before
            trial_id = self._unfinished_id(number)
            self._storage.set_trial_user_attr(trial_id, "state", state)
            if error is not None:
                lines = error.strip().splitlines() or ["unknown error"]
                self._storage.set_trial_user_attr(trial_id, "error", lines[0].strip())
            told = value if state is TrialState.COMPLETE else None
            self._study.tell(number, told, state=_TOLD[state])
            return self._record(self._frozen()[number])

    def forget_checkpoints(self, checkpoints: Iterable[str]) -> None:
        """Enter that `checkpoints` have been deleted; records name them no more."""
        gone = set(checkpoints)
        with self._transaction():
            for trial in self.trials():
                its = {r.checkpoint for r in trial.results if r.checkpoint in gone}
                if its:
                    # On the study, since a finished trial of Optuna takes no more attributes.
                    its |= self._deleted(trial.number)
                    self._study.set_user_attr(f"deleted:{trial.number}", sorted(its))

    # Reading

    def trials(self) -> list[TrialRecord]:
        """All trials by number."""
        with self._lock:
            attributes = self._storage.get_study_user_attrs(self._study_id)
            return [self._record(t, attributes) for t in self._frozen() if t.state != OptunaState.WAITING]

    def trial(self, number: int) -> TrialRecord:
        """The trial with this number.

        Raises:
            ValueError: there is none.
        """
        with self._lock:
            frozen = self._frozen()
            if not 0 <= number < len(frozen) or frozen[number].state == OptunaState.WAITING:
                raise ValueError(
                    f"there is no trial {number} in sweep {self.name}; it has {len(frozen)} trials"
                )
            return self._record(frozen[number])

    def unfinished(self) -> list[TrialRecord]:
        """Trials that are running or paused; after a kill, those to take up again at `checkpoint`."""
        return [t for t in self.trials() if not t.state.finished]

    def best(self) -> TrialRecord | None:
        """The trial with the best value, of equals the first; None while there is no value."""
        trials = ranked(self.trials(), self.metric, self.goal)
        return trials[0] if trials and trials[0].value(self.metric, self.goal) is not None else None

    # Inside

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                with self._journal.transaction():
                    yield
            except BaseException:
                self._records.clear()
                self._load(None, None)  # what was not written must not stay in memory
                raise

    def _frozen(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    def _unfinished_id(self, number: int) -> int:
        state = self.trial(number).state
        assert not state.finished, f"trial {number} is {state} already"
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _deleted(self, number: int) -> set[str]:
        return set(self._storage.get_study_user_attrs(self._study_id).get(f"deleted:{number}", ()))

    def _record(self, frozen: FrozenTrial, attributes: Mapping[str, Any] | None = None) -> TrialRecord:
        if attributes is None:
            attributes = self._storage.get_study_user_attrs(self._study_id)
        deleted = attributes.get(f"deleted:{frozen.number}")
        if frozen.number in self._records:
            record, deleted_then = self._records[frozen.number]
            if deleted == deleted_then:
                return record
        record = to_record(frozen, self.seed, frozenset(deleted or ()))
        if frozen.state.is_finished():
            self._records[frozen.number] = (record, deleted)
        return record

    def _close_half_asked(self) -> None:
        """Close trials whose drawing a crash of the machine (not of the process) cut short."""
        with self._transaction():  # so that nobody is drawing just now
            trials = self._frozen()
        for trial in trials:
            if trial.state == OptunaState.RUNNING and "params" not in trial.user_attrs:
                self.tell(trial.number, TrialState.FAILED, "cut short while it was drawn")


def _plain(value: Any) -> Any:
    """`value` without NumPy's scalar types, for JSON."""
    return value.item() if hasattr(value, "item") else value


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
