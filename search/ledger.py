"""The ledger of a sweep: an Optuna study, and everything that can be read from it.

Each trial of the ledger is a trial of a plain Optuna study, with user attributes for what Optuna has no
field for: `state` (finer than Optuna's), `params`, `seed`, `phases`, `rulings`, `note`, `error`, and
`result:STEP`, one for each evaluation. STEP is in ten-thousandths of an epoch, the finest interval between
evaluations that the settings allow; intermediate values stand at the same steps. The study itself has
`life` (what becomes of the sweep), `target` (how many trials it is to have), `deleted:TRIAL` (checkpoints),
`sitting:N` (what each driver has used) and `command:ID`, one for each command that was obeyed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search import vetting
from search.budget import Sitting
from search.database import Database
from search.journal import Journal
from search.life import Life
from search.objectives import Objective, pareto
from search.records import Goal, PhaseRecord, Result, Ruling, TrialRecord, TrialState, best_of

_READ = {
    OptunaState.RUNNING: TrialState.RUNNING,
    OptunaState.COMPLETE: TrialState.COMPLETE,
    OptunaState.PRUNED: TrialState.PRUNED,
    OptunaState.FAIL: TrialState.FAILED,
}

DELETED = "deleted:"
"""And a trial's number: the study's attribute of its checkpoints that are gone; an ended trial takes none."""
# What comes of reading what makes no sense.
_NONSENSE = (vetting.Altered, KeyError, TypeError, AttributeError)


class Ledger:
    """What `Study` writes, as values. Safe to use from several threads, and beside other processes."""

    def __init__(self, place: Path | Database, *, patience_s: float = 0.0) -> None:
        """Use `Study.open` or `Study.read`."""
        self.path = place
        self._lock = threading.RLock()
        self._writing = self._stale = False
        self._store = Journal(place, patience_s=patience_s) if isinstance(place, Path) else place
        self._drop()

    def _load(
        self, name: str | None, make: Mapping[str, Any] | None, given: Mapping[str, Any] | None = None
    ) -> None:
        """Read the journal afresh; with `make`, create the study within the open transaction.

        Args:
            given: what a study that is created here keeps besides `make`.
        """
        with self._vetted():
            self._storage = self._store.load()
            studies = self._storage.get_all_studies()
        if isinstance(self._store, Database):
            name = self._store.study
            studies = [study for study in studies if study.study_name == name]
        if not studies and make is not None:
            objectives = [(make["metric"], make["goal"]), *make.get("objectives", ())]
            created = optuna.create_study(
                storage=self._storage, study_name=name, directions=[goal for _, goal in objectives]
            )
            created.set_metric_names([name for name, _ in objectives])
            for key, value in {**make, **(given or {})}.items():
                created.set_user_attr(key, value)
        elif not studies:
            raise ValueError(f"{self.path}: the study is empty; start the sweep with `run` first")
        else:
            name = studies[0].study_name
            ours = studies[0].user_attrs.keys() & {"metric", "goal", "sampler", "seed"}
            for key, value in (make or {}).items():
                if ours and key not in ours:  # lost with a line that could not be read
                    self._storage.set_study_user_attr(studies[0]._study_id, key, value)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{self.path}: the study has no name, so it is not one of a Thaw sweep")
        # A sampler is made for each `ask`; this one only spares Optuna making its own.
        idle = optuna.samplers.RandomSampler(seed=0)
        self._study = optuna.load_study(study_name=name, storage=self._storage, sampler=idle)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._made = self._study.user_attrs
        if not {"metric", "goal", "sampler", "seed"} <= self._made.keys():
            raise ValueError(f"{self.path}: an Optuna study, but not one of a Thaw sweep")
        with self._vetted():  # now, and not when half a sweep has run on it
            vetting.study(self._made)
            _ = self.life, self.sittings
            self._drop()
            self.trials()

    @contextmanager
    def _vetted(self) -> Iterator[None]:
        """What is read within cannot do more than be refused."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # Optuna trusts its journal: anything may come of one that was altered
            of_database = isinstance(self._store, Database) and not isinstance(error, _NONSENSE)
            if of_database or str(error).startswith(str(self.path)):
                raise
            lines = str(error).strip().splitlines() or [""]
            raise ValueError(
                f"{self.path}: an entry of it cannot be right ({type(error).__name__}: "
                f"{vetting.shown(lines[0])[:200]}); it was altered, or another program wrote it"
            ) from error

    @property
    def name(self) -> str:
        """The sweep's name."""
        return str(self._made.get("name", self._study.study_name))

    @property
    def metric(self) -> str:
        """Full name of the metric that trials are compared by."""
        return str(self._made["metric"])

    @property
    def goal(self) -> Goal:
        """Whether more or less of the metric is better."""
        return "maximize" if self._made["goal"] == "maximize" else "minimize"

    @property
    def objectives(self) -> list[Objective]:
        """All that trials are compared by, the metric first."""
        first = Objective(name=self.metric, goal=self.goal)
        return [first, *(Objective(name=n, goal=g) for n, g in self._made.get("objectives", ()))]

    def pareto(self) -> list[TrialRecord]:
        """The complete trials that no other beats in all objectives, the best by the metric first."""
        return pareto(self.trials(), self.objectives)

    @property
    def seed(self) -> int:
        """The sweep's seed."""
        return int(self._made["seed"])

    # The sweep

    def live(self, life: Life) -> None:
        """Enter what becomes of the sweep."""
        with self.writing():
            self._study.set_user_attr("life", {**asdict(life), "at": time.time()})

    def aim(self, trials: int) -> None:
        """Enter how many trials the sweep is to have."""
        with self.writing():
            self._study.set_user_attr("target", trials)

    def obeyed(self, command: str, outcome: str) -> None:
        """Enter that the command with this id was carried out, and what came of it."""
        with self.writing():
            self._study.set_user_attr(f"command:{command}", outcome)

    def sit(self, number: int, sitting: Sitting) -> None:
        """Enter what driver `number` of the sweep has used so far."""
        with self.writing():
            self._study.set_user_attr(f"sitting:{number}", asdict(sitting))

    def settle(self) -> None:
        """Wait until all that was written has reached the ledger.

        Raises:
            OSError: it is out of reach, and has been for longer than the patience.
        """
        while self.away:
            with self.writing():
                pass
            time.sleep(0.2 if self.away else 0.0)

    @property
    def atomic(self) -> bool:
        """Whether what is written together reaches the ledger together."""
        return self._store.atomic

    @property
    def away(self) -> bool:
        """Whether the ledger is out of reach just now, and something written is in memory alone."""
        return self._store.away

    @property
    def life(self) -> Life:
        """What becomes of the sweep."""
        stored = dict(self._attributes().get("life", {}))
        stored.pop("at", None)
        life = Life(**stored)
        return replace(life, reason=vetting.shown(str(life.reason)))

    @property
    def target(self) -> int | None:
        """How many trials the sweep is to have; None where only the sweep file says so."""
        return self._attributes().get("target")

    @property
    def sittings(self) -> list[Sitting]:
        """What each driver has used, in their order."""
        stored = self._attributes()
        found: list[Sitting] = []
        while f"sitting:{len(found)}" in stored:
            found.append(vetting.sitting(Sitting(**stored[f"sitting:{len(found)}"])))
        return found

    def complete(self) -> list[FrozenTrial]:
        """The trials that ran to their end with their value of the metric, for Optuna's estimates."""
        with self._lock:
            found = [trial for trial in self._frozen() if trial.state == OptunaState.COMPLETE]
        return [
            optuna.trial.create_trial(
                value=trial.values[0], params=trial.params, distributions=trial.distributions
            )
            for trial in found
            if trial.values
        ]

    @property
    def waiting(self) -> int:
        """How many trials are entered that were not handed out yet."""
        with self._lock:
            return sum(t.state == OptunaState.WAITING for t in self._frozen())

    def outcome(self, command: str) -> str | None:
        """What came of the command with this id; None while it has not been carried out."""
        said = self._attributes().get(f"command:{command}")
        return None if said is None else vetting.shown(str(said))

    def trials(self) -> list[TrialRecord]:
        """All trials by number."""
        with self._lock:
            self._renew()
            return [record for record in self._records if record is not None]

    def trial(self, number: int) -> TrialRecord:
        """The trial with this number.

        Raises:
            ValueError: there is none.
        """
        with self._lock:
            self._renew()
            record = self._records[number] if 0 <= number < len(self._records) else None
            if record is None:
                begun = sum(known is not None for known in self._records)
                raise ValueError(f"there is no trial {number} in sweep {self.name}; it has {begun} trials")
            return record

    def unfinished(self) -> list[TrialRecord]:
        """Trials that are running or paused; after a kill, those to take up again at `checkpoint`."""
        return [t for t in self.trials() if not t.state.finished]

    def best(self) -> TrialRecord | None:
        """The trial with the best value, of equals the first; None while there is no value."""
        return best_of(self.trials(), self.metric, self.goal)

    # Inside

    def _forget(self) -> None:
        """Read the journal afresh."""
        self._drop()
        self._load(None, None)
        self._stale = False

    def _attributes(self) -> Mapping[str, Any]:
        with self._lock:
            return self._storage.get_study_user_attrs(self._study_id)

    def _frozen(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    def _drop(self) -> None:
        """Forget the records, and what they were made of."""
        self._records: list[TrialRecord | None] = []  # None: it waits
        self._made_of: list[FrozenTrial] = []
        self._noted: dict[str, Any] = {}

    def _renew(self) -> None:
        """Make those records anew whose trials have changed: of thousands that are asked for, a few have."""
        frozen, noted = self._frozen(), self._attributes()
        # Optuna makes a new object of a trial that changes.
        both = enumerate(zip(frozen, self._made_of, strict=False))
        changed = {number for number, (now, before) in both if now is not before}
        changed.update(range(len(self._made_of), len(frozen)))
        if noted != self._noted:
            keys = [key for key, value in noted.items() if self._noted.get(key) != value]
            numbers = [key.removeprefix(DELETED) for key in keys if key.startswith(DELETED)]
            changed.update(int(number) for number in numbers if number.isdecimal())
        self._records.extend([None] * (len(frozen) - len(self._records)))
        for number in changed:
            if number < len(frozen) and frozen[number].state != OptunaState.WAITING:
                deleted = frozenset(noted.get(f"{DELETED}{number}") or ())
                self._records[number] = to_record(frozen[number], self.seed, deleted)
        self._made_of, self._noted = frozen, dict(noted)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All that is written within reaches the ledger in one write, or not at all on an exception.

        Raises:
            OSError: the ledger is out of reach, and has been for longer than the patience.
        """
        with self._lock:
            if self._writing:
                yield
                return
            self._writing = True
            try:
                with self._store.transaction():
                    if self._stale or self._store.overtaken:
                        self._forget()
                    yield
            except BaseException:
                if self._store.atomic:
                    self._stale = True  # what was not written must not stay in memory
                    with suppress(OSError):
                        self._forget()
                raise
            finally:
                self._writing = False


def derived_seed(seed: int, number: int, purpose: str) -> int:
    """A seed in [0, 2**31) for one purpose of one trial; unrelated for all others."""
    digest = hashlib.sha256(f"{seed}/{number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def to_record(frozen: FrozenTrial, seed: int, deleted: frozenset[str]) -> TrialRecord:
    """The record of Optuna's `frozen`, in a sweep seeded with `seed`, without the `deleted` checkpoints."""
    attributes = frozen.user_attrs
    state = TrialState(attributes.get("state", _READ[frozen.state]))
    if state.finished != frozen.state.is_finished():  # closed by another tool
        state = _READ[frozen.state]
    stored = [value for key, value in attributes.items() if key.startswith("result:")]
    results = [Result.from_json(value) for value in stored]
    results = [replace(r, checkpoint=None) if r.checkpoint in deleted else r for r in results]
    found = TrialRecord(
        number=frozen.number,
        state=state,
        params=attributes.get("params", frozen.params),
        seed=attributes.get("seed", derived_seed(seed, frozen.number, "trial")),
        results=tuple(sorted(results, key=lambda r: r.epochs)),
        phases=tuple(PhaseRecord(**phase) for phase in attributes.get("phases", ())),
        rulings=tuple(Ruling(**ruling) for ruling in attributes.get("rulings", ())),
        note=attributes.get("note"),
        error=attributes.get("error"),
        same_as=attributes.get("same_as"),
    )
    return vetting.record(found)
