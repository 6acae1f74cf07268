"""A sweep's directory and its life: made, run, resumed, read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from search import forecasts, mirror, warm_start
from search.budget import Meter, Sitting, Spent
from search.changes import ALLOWED, sorted_out
from search.database import Database
from search.drawing import Drawing
from search.duplicates import Identity, untried
from search.inbox import Inbox
from search.life import SweepState, state_of
from search.loading import loads, to_yaml
from search.preflight import Facts, check_writable
from search.presence import Presence
from search.problems import hint
from search.records import TrialRecord, TrialState
from search.space import encode, suggest
from search.spec import SweepSpec, trial_settings
from search.steering import Helm
from search.study import Study
from search.watch import Watch
from training.config import TrialConfig
from training.data import cache_root

SPEC_FILE = "sweep.yaml"
LEDGER_FILE = "study.journal"
DRAFT_FILE = ".sweep.yaml"
IDENTITY_FILE = "sweep.json"
_HALF_MADE = frozenset({IDENTITY_FILE, DRAFT_FILE})
_STACK = ("thaw", "ray", "torch", "transformers", "deepspeed", "optuna")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep in its directory."""

    spec: SweepSpec
    directory: Path

    @property
    def ledger(self) -> Path:
        """The study's journal."""
        return self.directory / LEDGER_FILE

    def place(self, patience_s: float = 0.0) -> Path | Database:
        """Where the ledger is."""
        url = self.spec.search.storage
        if url is None:
            return self.ledger
        identity = json.loads((self.directory / IDENTITY_FILE).read_text())
        return Database(url=url, study=identity["study"], patience_s=patience_s)

    @property
    def begun(self) -> bool:
        """Whether there is a ledger."""
        if self.spec.search.storage is not None:
            try:
                self.read()
            except (ValueError, FileNotFoundError):
                return False
            return True
        return self.ledger.exists() and self.ledger.stat().st_size > 0  # a kill may leave it empty

    def repair(self) -> str | None:
        """Make a damaged ledger readable again; what was lost, or None where it is sound."""
        from search.repair import repair

        mirror.claim(self.directory)
        lost = repair(self.ledger) if self.ledger.exists() else None
        if lost is not None:
            mirror.push_changes(self.directory)  # the journal as it was
            mirror.replace_journal(self.ledger)
        return lost

    def open(self, *, patience_s: float = 0.0) -> Study:
        """The ledger, to write; made where it is missing.

        Args:
            patience_s: how long it goes on in memory while the directory is out of reach.
        """
        mirror.claim(self.directory)
        search, space = self.spec.search.resolved(), self.spec.space
        return Study.open(
            self.place(patience_s),
            name=self.spec.name,
            suggest=partial(suggest, space),
            metric=search.metric.name,
            goal=search.metric.goal,
            sampler=search.sampler,
            objectives=[(objective.name, objective.goal) for objective in search.objectives],
            seed=search.seed,
            drawing=self._drawing(),
            knowledge=self._knowledge,
            patience_s=patience_s,
        )

    def _knowledge(self) -> dict[str, Any]:
        """What the sampler starts from: points to try first, and what earlier sweeps know."""
        from search.points import first_points, stored

        sources = warm_start.gather(self.spec, self.directory.parent)
        return {
            "points": [stored(self.spec.space, point) for point in first_points(self.spec)],
            "prior": [trial for source in sources for trial in source.prior],
        }

    def _drawing(self) -> Drawing:
        space = self.spec.space
        identity = Identity(space=space, training=self.spec.training)

        def left(known: Collection[str]) -> list[dict[str, Any]] | None:
            points = untried(space, identity, known)
            return None if points is None else [encode(space, point) for point in points]

        return Drawing(duplicates=self.spec.search.duplicates, identity=identity, untried=left)

    def read(self) -> Study:
        """The ledger, to read only."""
        mirror.pull_journal(self.ledger)
        return Study.read(self.place())

    def helm(self) -> Helm:
        """What commands are carried out on, where nobody drives the sweep."""
        return Helm(study=self.read(), space=self.spec.space, trials=self.spec.search.trials)

    def target(self, study: Study) -> int:
        """How many trials it is to have, by its ledger or else by its file."""
        return study.target or self.spec.search.trials

    def state(self, study: Study | None = None) -> SweepState:
        """Where it is in its life."""
        study = study or self.read()
        driven = Presence(self.directory).driver() is not None
        trials = study.trials()
        if not driven and all(t.state.finished for t in trials) and is_exhausted(self.spec, trials):
            return SweepState.FINISHED
        return state_of(study.life, trials, self.target(study), driven=driven)

    def trial_config(self, record: TrialRecord) -> TrialConfig:
        """Everything that determines a trial's result."""
        return trial_settings(self.spec, record.params, record.seed)

    def trial_directory(self, number: int) -> Path:
        """Where a trial's checkpoints lie."""
        return self.directory / "trials" / f"{number:04d}"


def find(name: str, storage: Path) -> Sweep:
    """The sweep called `name`.

    Raises:
        ValueError: if there is none.
    """
    directory = storage / name
    path = directory / SPEC_FILE
    nameable = name not in ("", ".", "..") and "/" not in name and name.isprintable()
    if nameable:
        mirror.pull(directory)
    if not nameable or not path.is_file():
        fix = hint(name, names(storage)) or "; it holds none, so check --storage, or start one with `run`"
        raise ValueError(f"there is no sweep {name!r} in {mirror.shown(storage)}{fix}")
    spec = loads(path.read_text(), source=mirror.shown(path))
    # The directory may have been copied or renamed: then that is its name.
    return Sweep(spec=spec.model_copy(update={"name": name}), directory=directory)


def is_sweep(directory: Path) -> bool:
    """Whether a sweep is there."""
    place = mirror.place_of(directory)
    return (directory / SPEC_FILE).is_file() if place is None else (place / SPEC_FILE).exists()


def names(storage: Path) -> list[str]:
    """The sweeps in `storage`."""
    return [name for name in mirror.names(storage) if is_sweep(storage / name)]


def check_name(spec: SweepSpec, storage: Path, facts: Facts | None = None) -> list[str]:
    """Check that the name is free, or that of the same sweep on the same data.

    Args:
        facts: what the checks found out; without them the data's contents are not compared.

    Returns:
        What has changed in the sweep's file since it was begun, of what may; one line each.

    Raises:
        ValueError: if something else of this name is there.
    """
    directory = storage / spec.name
    mirror.pull(directory)
    if not (directory / SPEC_FILE).exists():
        theirs = mirror.names(directory)
        if not _HALF_MADE.issuperset(theirs):  # what is exported would replace what is there
            raise ValueError(
                f"name: {mirror.shown(directory)} is there already and is not a sweep; "
                f"give another name with --set name=..., or another --storage"
            )
        warm_start.gather(spec, storage)  # what is wrong with it is told before anything is made
        return []
    there = find(spec.name, storage).spec
    # The same data may lie elsewhere by now: their contents are compared.
    paths = {name: getattr(spec.data, name) for name in ("train", "validation", "test", "name")}
    allowed, changes = sorted_out(there.model_copy(update={"data": replace(there.data, **paths)}), spec)
    if facts is not None and not changes:
        identity = json.loads((directory / IDENTITY_FILE).read_text())
        if identity.get("data_fingerprint", facts.data_fingerprint) != facts.data_fingerprint:
            raise ValueError(
                f"data: sweep {spec.name!r} in {mirror.shown(storage)} was begun with other examples, "
                f"or with versions of transformers or tokenizers that cut them differently; "
                f"bring those back, or give this one another name with --set name=..."
            )
    if changes:
        raise ValueError(
            f"name: sweep {spec.name!r} is in {mirror.shown(storage)} already, with another file "
            f"({'; '.join(changes[:5])}); of a sweep that has begun only {ALLOWED} may change; give this "
            f"one another name with --set name=..., or go on with that one with `resume {spec.name}`"
        )
    return allowed


def create(spec: SweepSpec, storage: Path, facts: Facts | None = None) -> Sweep:
    """Make the sweep's directory and ledger; or take them up again, where they are the same sweep's.

    Raises:
        ValueError: see `check_name`.
    """
    changes = check_name(spec, storage, facts)
    sweep = Sweep(spec=spec, directory=storage / spec.name)
    mirror.claim(sweep.directory)
    begun = (sweep.directory / SPEC_FILE).exists()
    if not begun:
        sweep.directory.mkdir(parents=True, exist_ok=True)
        identity = {
            "id": uuid.uuid4().hex,
            "study": f"{spec.name}-{uuid.uuid4().hex[:8]}",
            "created": time.time(),
            "versions": versions(),
            "commit": commit(),
            **({"data_fingerprint": facts.data_fingerprint} if facts else {}),
        }
        (sweep.directory / IDENTITY_FILE).write_text(json.dumps(identity, indent=1))
        forecasts.adopt(spec, cache_root(), sweep.directory)
    if changes or not begun:
        draft = sweep.directory / DRAFT_FILE
        draft.write_text(to_yaml(spec))
        draft.rename(sweep.directory / SPEC_FILE)  # last: where it is, the sweep is
        mirror.push_changes(sweep.directory)
    study = sweep.open()
    if study.target is not None and study.target < spec.search.trials:
        study.aim(spec.search.trials)
    return sweep


def export(sweep: Sweep, record: TrialRecord, directory: Path) -> None:
    """Write a trial's best checkpoint as a Hugging Face model directory.

    Raises:
        ValueError: if it has no checkpoint any more, or `directory` holds something or cannot be written.
    """
    check_writable(directory, "--output")
    metric = sweep.spec.search.metric
    best = record.best_result(metric.name, metric.goal)
    if best is None or best.checkpoint is None:
        raise ValueError(
            f"trial {record.number}: its checkpoint was not kept; the sweep keeps those of the best "
            f"{sweep.spec.checkpoints.keep} trials (checkpoints.keep)"
        )
    from training.export import export as write  # brings in torch

    write(sweep.trial_config(record), mirror.checkpoint(best.checkpoint, sweep.directory), directory)


def export_best(sweep: Sweep, record: TrialRecord) -> str:
    """Write the best trial's model to the sweep's directory, in place of an earlier one; returns where."""
    directory, fresh = sweep.directory / "best", sweep.directory / ".best"
    shutil.rmtree(fresh, ignore_errors=True)
    export(sweep, record, fresh)
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)
    mirror.put_directory(directory)
    return mirror.shown(directory)


def is_finished(sweep: Sweep) -> bool:
    """Whether no trial is left to run."""
    if not sweep.begun:
        return False
    study = sweep.read()
    return (
        not study.waiting
        and not Inbox(sweep.directory).commands()
        and sweep.state(study) is SweepState.FINISHED
    )


def used_up(sweep: Sweep) -> Spent | None:
    """The budget that lets no further trial run; None too where a driver has to close what one left open."""
    if not sweep.begun or Inbox(sweep.directory).commands():
        return None
    study, spec = sweep.read(), sweep.spec
    if not all(trial.held for trial in study.unfinished()):
        return None
    watch = Watch(study, budget=spec.search.budget, prices=spec.resources.prices, meter=Meter())
    return watch.exhausted(Sitting())


def is_exhausted(spec: SweepSpec, trials: Sequence[TrialRecord]) -> bool:
    """Whether every point of the space has been tried, where none is to be tried twice."""
    if spec.search.duplicates != "redraw":
        return False
    identity = Identity(space=spec.space, training=spec.training)
    known = {identity(t.params) for t in trials if t.state is not TrialState.FAILED}
    return untried(spec.space, identity, known) == []


def flat_settings(config: TrialConfig) -> dict[str, Any]:
    """All settings of a trial by dotted path, those of `training` without its name, as in `parameters`."""
    flat: dict[str, Any] = {}

    def add(prefix: str, settings: Mapping[str, Any]) -> None:
        for key, value in settings.items():
            if isinstance(value, Mapping):
                add(f"{prefix}{key}.", value)
            else:
                flat[f"{prefix}{key}"] = value

    for section, settings in asdict(config).items():
        if section != "seed":
            add("" if section == "training" else f"{section}.", settings)
    return flat


def versions() -> Mapping[str, str]:
    """Versions of what a result depends on."""
    return {"python": sys.version.split()[0], **{name: version(name) for name in _STACK}}


def commit() -> str | None:
    """The git commit of the working directory, if it is one."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()
