"""A sweep's directory and its life: made, run, resumed, read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from search.loading import differences, loads, to_yaml
from search.preflight import Facts
from search.progress import Progress, View
from search.records import TrialRecord
from search.space import suggest
from search.spec import SweepSpec, trial_settings
from search.study import Study

SPEC_FILE = "sweep.yaml"
LEDGER_FILE = "study.journal"
IDENTITY_FILE = "sweep.json"
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

    def read(self) -> Study:
        """The ledger, to read only."""
        return Study.read(self.ledger)

    def trial_config(self, record: TrialRecord) -> Any:
        """Everything that determines a trial's result, as a `training.config.TrialConfig`."""
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
    if "/" in name or not path.is_file():
        there = sorted(p.parent.name for p in storage.glob(f"*/{SPEC_FILE}")) if storage.is_dir() else []
        known = f"; there: {', '.join(there)}" if there else "; it is empty, so start one with `run`"
        raise ValueError(f"{name}: no such sweep in {storage}{known}")
    return Sweep(spec=loads(path.read_text(), source=str(path)), directory=directory)


def create(spec: SweepSpec, storage: Path) -> Sweep:
    """Make the sweep's directory; or take it up again, where it holds the same sweep.

    Raises:
        ValueError: if a sweep of this name but with another file is there.
    """
    directory = storage / spec.name
    if (directory / SPEC_FILE).exists():
        there = find(spec.name, storage)
        # The same data may lie elsewhere by now: its contents are compared, by fingerprint, in each trial.
        changes = differences(there.spec.model_copy(update={"data": spec.data}), spec)
        if changes:
            raise ValueError(
                f"name: sweep {spec.name!r} is in {storage} already, with another file "
                f"({'; '.join(changes[:5])}); give this one another name with --set name=..., "
                f"or go on with that one with `resume {spec.name}`"
            )
        return replace(there, spec=spec)
    directory.mkdir(parents=True, exist_ok=True)
    identity = {"id": uuid.uuid4().hex, "created": time.time(), "versions": versions(), "commit": commit()}
    (directory / IDENTITY_FILE).write_text(json.dumps(identity, indent=1))
    draft = directory / f".{SPEC_FILE}"
    draft.write_text(to_yaml(spec))
    draft.rename(directory / SPEC_FILE)  # last: where it is, the sweep is
    return Sweep(spec=spec, directory=directory)


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
    study = Study.open(
        sweep.ledger,
        name=spec.name,
        suggest=partial(suggest, spec.space),
        metric=spec.search.metric.name,
        goal=spec.search.metric.goal,
        sampler=spec.search.sampler,
        seed=spec.search.seed,
    )
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
        facts={
            "model": spec.model.name,
            "task": spec.task.type,
            "data_fingerprint": facts.data_fingerprint,
            "versions": versions(),
            "commit": commit(),
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
        ValueError: if it has no checkpoint any more, or `directory` holds something.
    """
    from training.export import export as write

    metric = sweep.spec.search.metric
    best = record.best_result(metric.name, metric.goal)
    if best is None or best.checkpoint is None:
        raise ValueError(
            f"trial {record.number}: its checkpoint was not kept; the sweep keeps those of the best "
            f"{sweep.spec.checkpoints.keep} trials (checkpoints.keep)"
        )
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
    if not sweep.ledger.exists():
        return False
    trials = sweep.read().trials()
    return len(trials) >= sweep.spec.search.trials and all(trial.state.finished for trial in trials)


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
