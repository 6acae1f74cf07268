"""A sweep's directory and its life: made, run, resumed, read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from search.loading import differences, loads, to_yaml
from search.preflight import Facts, check_writable
from search.problems import hint
from search.progress import Progress, View
from search.records import TrialRecord
from search.space import suggest
from search.spec import SweepSpec, trial_settings
from search.study import Study
from training.config import TrialConfig

SPEC_FILE = "sweep.yaml"
LEDGER_FILE = "study.journal"
DRAFT_FILE = ".sweep.yaml"
IDENTITY_FILE = "sweep.json"
_HALF_MADE = frozenset({IDENTITY_FILE, DRAFT_FILE})
_STACK = ("thaw", "ray", "torch", "transformers", "deepspeed", "optuna")
_TRACKER_PATIENCE_S = 10.0
_INTERRUPTED_PATIENCE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep in its directory."""

    spec: SweepSpec
    directory: Path

    @property
    def ledger(self) -> Path:
        """The study's journal."""
        return self.directory / LEDGER_FILE

    def open(self) -> Study:
        """The ledger, to write; made where it is missing."""
        search = self.spec.search
        return Study.open(
            self.ledger,
            name=self.spec.name,
            suggest=partial(suggest, self.spec.space),
            metric=search.metric.name,
            goal=search.metric.goal,
            sampler=search.sampler,
            seed=search.seed,
        )

    def read(self) -> Study:
        """The ledger, to read only."""
        return Study.read(self.ledger)

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
    if name in ("", ".", "..") or "/" in name or not path.is_file():
        there = sorted(p.parent.name for p in storage.glob(f"*/{SPEC_FILE}"))
        fix = hint(name, there) or "; it holds none, so check --storage, or start one with `run`"
        raise ValueError(f"there is no sweep {name!r} in {storage}{fix}")
    spec = loads(path.read_text(), source=str(path))
    # The directory may have been copied or renamed: then that is its name.
    return Sweep(spec=spec.model_copy(update={"name": name}), directory=directory)


def check_name(spec: SweepSpec, storage: Path, facts: Facts | None = None) -> None:
    """Check that the name is free, or that of the same sweep on the same data.

    Args:
        facts: what the checks found out; without them the data's contents are not compared.

    Raises:
        ValueError: if something else of this name is there.
    """
    directory = storage / spec.name
    if not (directory / SPEC_FILE).exists():
        theirs = [p.name for p in directory.iterdir()] if directory.is_dir() else []
        if not _HALF_MADE.issuperset(theirs):  # what is exported would replace what is there
            raise ValueError(
                f"name: {directory} is there already and is not a sweep; give another name with "
                f"--set name=..., or another --storage"
            )
        return
    there = find(spec.name, storage).spec
    # The same data may lie elsewhere by now: their contents are compared.
    paths = {name: getattr(spec.data, name) for name in ("train", "validation", "test", "name")}
    changes = differences(there.model_copy(update={"data": replace(there.data, **paths)}), spec)
    if facts is not None and not changes:
        identity = json.loads((directory / IDENTITY_FILE).read_text())
        if identity.get("data_fingerprint", facts.data_fingerprint) != facts.data_fingerprint:
            raise ValueError(
                f"data: sweep {spec.name!r} in {storage} was begun with other examples, or with versions of "
                f"transformers or tokenizers that cut them differently; bring those back, or give this one "
                f"another name with --set name=..."
            )
    if changes:
        raise ValueError(
            f"name: sweep {spec.name!r} is in {storage} already, with another file "
            f"({'; '.join(changes[:5])}); give this one another name with --set name=..., "
            f"or go on with that one with `resume {spec.name}`"
        )


def create(spec: SweepSpec, storage: Path, facts: Facts | None = None) -> Sweep:
    """Make the sweep's directory and ledger; or take them up again, where they are the same sweep's.

    Raises:
        ValueError: see `check_name`.
    """
    check_name(spec, storage, facts)
    sweep = Sweep(spec=spec, directory=storage / spec.name)
    if not (sweep.directory / SPEC_FILE).exists():
        sweep.directory.mkdir(parents=True, exist_ok=True)
        identity = {
            "id": uuid.uuid4().hex,
            "created": time.time(),
            "versions": versions(),
            "commit": commit(),
            **({"data_fingerprint": facts.data_fingerprint} if facts else {}),
        }
        (sweep.directory / IDENTITY_FILE).write_text(json.dumps(identity, indent=1))
        draft = sweep.directory / DRAFT_FILE
        draft.write_text(to_yaml(spec))
        draft.rename(sweep.directory / SPEC_FILE)  # last: where it is, the sweep is
    sweep.open()
    return sweep


def run(sweep: Sweep, *, facts: Facts, fits: int, progress: Progress) -> tuple[list[str], list[str]]:
    """Run a sweep, or what is left of it, on the connected Ray cluster.

    Args:
        facts: what the checks found out.
        fits: how many trials the cluster holds at a time.

    Returns:
        Where the trackers' results are, and what went wrong with them.
    """
    # Ray comes in here, and not where a ledger is only read.
    from search import tuner
    from search.driver import Driver
    from search.schedulers import make_scheduler
    from search.trackers import JsonlConfig, build
    from training.gang import Order

    spec = sweep.spec
    study = sweep.open()
    revision = commit()
    identity = json.loads((sweep.directory / IDENTITY_FILE).read_text())
    tracker = build({"jsonl": JsonlConfig(), "wandb": spec.tracking.wandb})
    driver = Driver(
        study=study,
        scheduler=make_scheduler(spec.search.scheduler, spec.search.metric, spec.training),
        tracker=tracker,
        trials=spec.search.trials,
        keep=spec.checkpoints.keep,
        directory=sweep.directory,
        sweep_id=identity["id"],
        describe=lambda record: {
            **flat_settings(sweep.trial_config(record)),
            "data_fingerprint": facts.data_fingerprint,
            "versions": versions(),
            "commit": revision,
        },
    )
    wanted = spec.resources.max_concurrent
    concurrency = min(fits, spec.search.trials) if wanted == "auto" else min(fits, wanted)
    began = time.monotonic()

    def show() -> None:
        progress.update(
            View(
                name=spec.name,
                metric=study.metric,
                goal=study.goal,
                trials=driver.records(),
                total=spec.search.trials,
                concurrency=concurrency,
                elapsed_s=time.monotonic() - began,
                live=dict(driver.steps),
                notice=None
                if driver.steps or any(t.results for t in driver.records())
                else "starting workers",
            )
        )

    scratch = sweep.directory / ".ray"
    patience_s = _INTERRUPTED_PATIENCE_S
    try:
        tuner.run(
            driver,
            order=lambda record: Order(
                trial=record.number,
                config=sweep.trial_config(record),
                directory=str(sweep.trial_directory(record.number)),
            ),
            workers=spec.resources.workers,
            cpus_per_worker=spec.resources.cpus_per_worker,
            gpus_per_worker=spec.resources.gpus_per_worker,
            concurrency=concurrency,
            scratch=scratch,
            on_change=show,
        )
        patience_s = _TRACKER_PATIENCE_S
    finally:
        tracker.close(patience_s)
        shutil.rmtree(scratch, ignore_errors=True)
    return tracker.locations(), list(tracker.warnings)


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

    write(sweep.trial_config(record), Path(best.checkpoint), directory)


def export_best(sweep: Sweep, record: TrialRecord) -> Path:
    """Write the best trial's model to the sweep's directory, in place of an earlier one; returns where."""
    directory, fresh = sweep.directory / "best", sweep.directory / ".best"
    shutil.rmtree(fresh, ignore_errors=True)
    export(sweep, record, fresh)
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)
    return directory


def is_finished(sweep: Sweep) -> bool:
    """Whether no trial is left to run."""
    if not sweep.ledger.exists() or not sweep.ledger.stat().st_size:  # a kill may leave it empty
        return False
    trials = sweep.read().trials()
    return len(trials) >= sweep.spec.search.trials and all(trial.state.finished for trial in trials)


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
