"""The ledger of a sweep, to write: ask, report, rule, tell. What it holds is said in `search/ledger.py`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search.config import SamplerConfig
from search.database import Database
from search.drawing import Drawing, SpaceExhausted, Suggest, draw, plain_values
from search.ledger import DELETED, Ledger, derived_seed
from search.objectives import values_of
from search.records import Goal, PhaseRecord, Result, Ruling, RulingKind, TrialRecord, TrialState
from search.samplers import make_sampler
from search.view import STEPS_PER_EPOCH, View, prior_trial

__all__ = [
    "Goal",
    "PhaseRecord",
    "Result",
    "SpaceExhausted",
    "Study",
    "Suggest",
    "TrialRecord",
    "TrialState",
    "derived_seed",
]

# What Optuna, and with it every sampler, is told. PRUNED without values ranks below all others,
# so samplers learn to avoid what is infeasible; FAIL they ignore.
_TOLD = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.DIVERGED: OptunaState.PRUNED,
    TrialState.INFEASIBLE: OptunaState.PRUNED,
}

_RULED = {
    "pause": TrialState.PAUSED,
    "hold": TrialState.PAUSED,
    "promote": TrialState.RUNNING,
}


class Study(Ledger):
    """The ledger of one sweep, to write. Safe to use from several threads, and beside other processes."""

    def __init__(
        self,
        path: Path | Database,
        *,
        suggest: Suggest | None = None,
        sampler: SamplerConfig | None = None,
        drawing: Drawing | None = None,
        patience_s: float = 0.0,
    ) -> None:
        """Use `open` or `read`."""
        super().__init__(path, patience_s=patience_s)
        self._suggest = suggest
        self._sampler = sampler
        self._drawing = drawing or Drawing()
        self._identities: dict[int, str] = {}

    @classmethod
    def open(
        cls,
        path: Path | Database,
        *,
        name: str,
        suggest: Suggest,
        metric: str,
        goal: Goal,
        sampler: SamplerConfig,
        seed: int,
        objectives: Sequence[tuple[str, Goal]] = (),
        drawing: Drawing | None = None,
        knowledge: Callable[[], Mapping[str, Any]] | None = None,
        create: bool = True,
        patience_s: float = 0.0,
    ) -> Study:
        """Open the ledger at `path` to go on with it; make it when it is missing and `create` is set.

        Args:
            objectives: names and goals of what trials are compared by besides `metric`.
            knowledge: what a ledger that is made here keeps for its sampler: `points`, parameters as
                Optuna stores them, that are tried before any is drawn, and `prior`, trials of
                earlier sweeps (`search/warm_start.py`).
            patience_s: how long it goes on in memory, once opened, while `path` is out of reach.

        Raises:
            ValueError: there is no ledger, or it was made with another metric, goal, sampler or seed.
            OSError: the place is not readable or writable.
        """
        _quiet()
        make_sampler(sampler, 0, suggest)  # an unknown one fails here, before anything is made
        born = (
            not path.begun() if isinstance(path, Database) else not path.exists() or not path.stat().st_size
        )
        given = dict(knowledge()) if born and create and knowledge is not None else {}
        if isinstance(path, Path) and not path.exists():
            if not create:
                raise ValueError(f"{path}: there is no study; start the sweep with `run` first")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        study = cls(path, suggest=suggest, sampler=sampler, drawing=drawing, patience_s=patience_s)
        wanted = {"metric": metric, "goal": goal, "sampler": sampler.type, "seed": seed}
        if objectives:
            wanted["objectives"] = [list(objective) for objective in objectives]
        with study._store.transaction():
            study._load(name, wanted, {"name": name, **given})
        for key, value in wanted.items():
            if study._made.get(key) != value:
                raise ValueError(f"{path}: made with {key} {study._made.get(key)!r}, got {value!r}")
        study._close_half_asked()
        return study

    @classmethod
    def read(cls, path: Path | Database) -> Study:
        """Open the ledger at `path` to read only.

        Raises:
            ValueError: there is no ledger at `path`.
        """
        _quiet()
        if isinstance(path, Path) and not path.exists():
            raise ValueError(f"{path}: there is no study; start the sweep with `run` first")
        study = cls(path)
        study._load(None, None)
        return study

    # Writing

    def ask(self) -> TrialRecord:
        """Draw the next trial and enter it as running, all in one write.

        The draw is a function of the sweep's seed, the trial's number and the ledger so far. A trial
        that has the results of another from the start is entered as finished.

        Raises:
            SpaceExhausted: there is nothing left to draw.
        """
        assert self._suggest is not None, "opened to read only"
        assert self._sampler is not None, "opened to read only"
        with self.writing():
            trials = self._frozen()
            number = next((t.number for t in trials if t.state == OptunaState.WAITING), len(trials))
            take = self._take_waiting if number < len(trials) else self._take_drawn
            take(number)
            return self.trial(number)

    def _take_waiting(self, number: int) -> None:
        """Make a trial that was asked for by hand the next one, whether it is known or not."""
        assert self._suggest is not None
        assert self._sampler is not None
        drawn_with = derived_seed(self.seed, number, "sampler")
        self._study.sampler = make_sampler(self._sampler, drawn_with, self._suggest)
        trial = self._study.ask()
        assert trial.number == number
        params = plain_values(self._suggest(trial))
        trial.set_user_attr("seed", derived_seed(self.seed, number, "trial"))
        trial.set_user_attr("params", params)

    def _take_drawn(self, number: int) -> None:
        """Draw trial `number` and enter it."""
        assert self._suggest is not None
        assert self._sampler is not None
        trials = self.trials()
        for trial in trials:
            if trial.number not in self._identities:
                self._identities[trial.number] = self._drawing.identity(trial.params)
        tried = 1 + max((t.user_attrs.get("point", -1) for t in self._frozen()), default=-1)
        view = View(self._storage, self._study_id, self._prior)
        drawn = draw(
            view,
            self._suggest,
            drawing=self._drawing,
            config=self._sampler,
            seed=self.seed,
            number=number,
            points=self._made.get("points", [])[tried:],
            trials=trials,
            known=self._identities,
        )
        attributes = {
            "seed": derived_seed(self.seed, number, "trial"),
            "params": drawn.params,
            **({"point": tried + drawn.point} if drawn.point is not None else {}),
            **({"redrawn": drawn.redrawn} if drawn.redrawn else {}),
        }
        self._study.sampler = drawn.sampler
        if drawn.same_as is None:
            view.keep(attributes)
            return
        view.keep({**attributes, "same_as": drawn.same_as.number})
        for result in drawn.same_as.results:  # they cost nothing again, and the files are the other's
            self._enter(number, replace(result, checkpoint=None, seconds=0.0, gpu_seconds=0.0))
        self._close(number, drawn.same_as.state, drawn.same_as.error)

    @cached_property
    def _prior(self) -> list[FrozenTrial]:
        """Trials of earlier sweeps, as its sampler sees them."""
        assert self._suggest is not None
        stored = self._made.get("prior", ())
        return [prior_trial(number, of, self._suggest, self.objectives) for number, of in enumerate(stored)]

    def report(self, number: int, result: Result) -> TrialRecord:
        """Enter an evaluation of an unfinished trial. The same epochs again replace what was there."""
        with self.writing():
            self._enter(number, result)
            return self.trial(number)

    def _enter(self, number: int, result: Result) -> None:
        step = round(result.epochs * STEPS_PER_EPOCH)
        trial_id = self._unfinished_id(number)
        self._storage.set_trial_user_attr(trial_id, f"result:{step}", result.to_json())
        deleted = self._deleted(number)
        if result.checkpoint in deleted:  # written again
            self._study.set_user_attr(f"{DELETED}{number}", sorted(deleted - {result.checkpoint}))
        value = result.metrics.get(self.metric, math.nan)
        if math.isfinite(value):  # Optuna's views and samplers take numbers only
            self._storage.set_trial_intermediate_value(trial_id, step, float(value))

    def record_phases(self, number: int, phases: Iterable[PhaseRecord]) -> None:
        """Enter the unfreezing phases of an unfinished trial, in place of those before."""
        listed = [{"name": p.name, "start_epoch": p.start_epoch, "thawed": p.thawed} for p in phases]
        with self.writing():
            self._storage.set_trial_user_attr(self._unfinished_id(number), "phases", listed)

    def rule(self, number: int, decision: RulingKind, reason: str) -> TrialRecord:
        """Enter a decision on an unfinished trial: `pause` and `hold` make it paused, `promote` running."""
        with self.writing():
            before = self.trial(number)
            trial_id = self._unfinished_id(number)
            ruling = Ruling(decision=decision, epochs=before.epochs, reason=reason)
            listed = [asdict(given) for given in (*before.rulings, ruling)]
            self._storage.set_trial_user_attr(trial_id, "rulings", listed)
            state = _RULED.get(decision)
            if state is not None and state is not before.state:
                self._storage.set_trial_user_attr(trial_id, "state", state)
            return self.trial(number)

    def enqueue(self, stored: Mapping[str, Any], note: str) -> int:
        """Enter a trial whose parameters are given, to be handed out before any that is drawn.

        Args:
            stored: parameters as `search.space.encode` makes them; those left out are drawn.
            note: where it comes from.

        Returns:
            The trial's number.
        """
        with self.writing():
            number = len(self._frozen())
            self._study.enqueue_trial(dict(stored), user_attrs={"note": note})
            return number

    def tell(self, number: int, state: TrialState, error: str | None = None) -> TrialRecord:
        """Close a trial. Telling the same state again changes nothing.

        A complete trial is told with its best value; one without a finite value has failed. A
        pruned one is told with its intermediate values. Of `error`, the first line is kept.
        """
        assert state.finished, f"tell takes a final state, got {state}"
        with self.writing():
            self._close(number, state, error)
            return self.trial(number)

    def _close(self, number: int, state: TrialState, error: str | None) -> None:
        before = self.trial(number)
        values = values_of(before, self.objectives)
        if state is TrialState.COMPLETE and values is None:
            names = ", ".join(objective.name for objective in self.objectives)
            state, error = TrialState.FAILED, error or f"no finite value of {names}"
        if before.state.finished:
            assert before.state == state, f"trial {number} is {before.state} and cannot become {state}"
            return
        trial_id = self._unfinished_id(number)
        self._storage.set_trial_user_attr(trial_id, "state", state)
        if error is not None:
            lines = error.strip().splitlines() or ["unknown error"]
            self._storage.set_trial_user_attr(trial_id, "error", lines[0].strip())
        told = values if state is TrialState.COMPLETE else None
        self._study.tell(number, told, state=_TOLD[state])

    def forget_checkpoints(self, checkpoints: Iterable[str]) -> None:
        """Enter that `checkpoints` have been deleted; records name them no more."""
        gone = set(checkpoints)
        with self.writing():
            for trial in self.trials():
                its = {r.checkpoint for r in trial.saved if r.checkpoint in gone}
                if its:
                    its |= self._deleted(trial.number)
                    self._study.set_user_attr(f"{DELETED}{trial.number}", sorted(its))

    def _forget(self) -> None:
        super()._forget()
        self._identities.clear()

    def _unfinished_id(self, number: int) -> int:
        state = self.trial(number).state
        assert not state.finished, f"trial {number} is {state} already"
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _deleted(self, number: int) -> set[str]:
        return set(self._storage.get_study_user_attrs(self._study_id).get(f"{DELETED}{number}", ()))

    def _close_half_asked(self) -> None:
        """Close trials whose drawing a crash of the machine (not of the process) cut short."""
        with self.writing():  # so that nobody is drawing just now
            trials = self._frozen()
        for trial in trials:
            if trial.state == OptunaState.RUNNING and "params" not in trial.user_attrs:
                self.tell(trial.number, TrialState.FAILED, "cut short while it was drawn")


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
