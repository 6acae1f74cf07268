"""A sitting of a sweep's driver: from taking the sweep up to its end, or to where it is held."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from search import mirror
from search.budget import Meter
from search.driver import Driver
from search.inbox import Inbox
from search.life import Wanted
from search.logbook import kept
from search.preflight import Facts
from search.presence import BEAT_S, Presence
from search.progress import Progress, View
from search.space import SearchSpace
from search.sweep import IDENTITY_FILE, Sweep, commit, flat_settings, versions
from search.watch import Watch

LEDGER_PATIENCE_S = 600.0
"""How long a sweep goes on in memory while its directory is out of reach."""
_LOOK_S = 1.0
_TRACKER_PATIENCE_S = 10.0
_INTERRUPTED_PATIENCE_S = 3.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a sitting ended."""

    wanted: Wanted
    """RUN where all trials are through."""
    reason: str
    results: list[str]
    """Where the trackers' results are."""
    warnings: list[str]
    """What went wrong without ending the sweep."""


class Attendant:
    """Looks after a running sweep: carries out commands, and says that its driver is there."""

    def __init__(self, directory: Path, driver: Driver, space: SearchSpace) -> None:
        self._driver = driver
        self._space = space
        self._inbox = Inbox(directory)
        self._presence = Presence(directory)
        self._looked_at = -1e9
        self._lost = False

    @contextlib.contextmanager
    def on_duty(self) -> Iterator[None]:
        """Drive the sweep: first what was wanted of it while nobody did, then on.

        Raises:
            Taken: another process drives it.
        """
        off_duty = threading.Event()
        with self._presence.claimed():
            # On a thread of its own: nothing that the driver waits for may make it seem dead.
            beating = threading.Thread(target=self._beat, args=(off_duty,), name="presence", daemon=True)
            beating.start()
            try:
                self.obey()
                if self._driver.life.wanted is not Wanted.RUN:
                    self._driver.end(Wanted.RUN, "")
                yield
                self.obey()
            finally:
                off_duty.set()
                beating.join()

    def _beat(self, off_duty: threading.Event) -> None:
        while not off_duty.wait(BEAT_S):
            if not self._presence.beat():
                log.error("another process has taken the sweep over; this one leaves it")
                self._lost = True
                return

    def obey(self) -> None:
        """Carry out the commands that have come."""
        for command in self._inbox.commands():
            self._driver.obey(command, self._space)
            self._inbox.remove(command)

    def look(self) -> bool:
        """Do what is due; whether the sweep must end at once. Call it a few times a second."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self.obey()
        return self._lost or self._driver.life.wanted is Wanted.CANCEL


def run(
    sweep: Sweep,
    *,
    facts: Facts,
    fits: int,
    gpus_per_worker: float,
    progress: Progress,
    allowed: Callable[[int, int], int] | None = None,
) -> Outcome:
    """Run a sweep, or what is left of it, on the connected Ray cluster.

    Args:
        facts: what the checks found out.
        fits: how many trials the cluster holds at a time.
        gpus_per_worker: as the file says, or as was decided (see `search.packing`).
        allowed: how many gangs the sweep may have now, where others share the cluster; it is told how many
            it wants and how many it has.

    Raises:
        Taken: another process drives it.
        OSError: its ledger was out of reach for longer than `LEDGER_PATIENCE_S`.
    """
    # Ray comes in here, and not where a ledger is only read.
    from search import tuner
    from search.foresight import boundaries
    from search.schedulers import make_scheduler
    from search.schedulers.compute import compute_taken
    from search.trackers import JsonlConfig, build
    from search.trackers.jsonl import open_runs
    from training.gang import Order

    spec = sweep.spec
    Presence(sweep.directory).check()  # before anything is written; `on_duty` makes sure of it
    study = sweep.open(patience_s=LEDGER_PATIENCE_S)
    provenance = {
        "data_fingerprint": facts.data_fingerprint,
        "versions": versions(),
        "commit": commit(),
    }
    identity = json.loads((sweep.directory / IDENTITY_FILE).read_text())
    tracker = build({"jsonl": JsonlConfig(), "wandb": spec.tracking.wandb})
    driver = Driver(
        study=study,
        scheduler=make_scheduler(
            spec.search.resolved().scheduler,
            spec.search.metric,
            spec.training,
            compute_taken(sweep.trial_config, facts.num_blocks),
        ),
        tracker=tracker,
        trials=spec.search.trials,
        keep=spec.checkpoints.keep,
        directory=sweep.directory,
        sweep_id=identity["id"],
        describe=lambda record: {**flat_settings(sweep.trial_config(record)), **provenance},
        gpus=spec.resources.most_workers * gpus_per_worker,
        budget=Watch(
            study,
            budget=spec.search.budget,
            prices=spec.resources.prices,
            meter=Meter(tuner.node_types),
        ),
    )
    driver.catch_up(open_runs(sweep.directory))
    attendant = Attendant(sweep.directory, driver, spec.space)
    wanted = spec.resources.max_concurrent
    concurrency = fits if wanted == "auto" else min(fits, wanted)
    began = time.monotonic()
    called_off = False

    def attend() -> None:
        try:
            attend_once()
        except Exception:  # the next time may do better, and the main thread meets what does not pass
            log.exception("the sweep could not be looked after")

    def attend_once() -> None:
        nonlocal called_off
        if attendant.look() and not called_off:
            called_off = True
            os.kill(os.getpid(), signal.SIGINT)  # to the main thread, which waits in Tune
        progress.update(
            View(
                name=spec.name,
                metric=study.metric,
                goal=study.goal,
                trials=driver.records(),
                total=driver.target,
                concurrency=min(concurrency, driver.target),
                elapsed_s=time.monotonic() - began,
                live=dict(driver.steps),
                notice=_notice(driver),
            )
        )

    scratch = sweep.directory / ".ray"
    patience_s = _INTERRUPTED_PATIENCE_S
    with attendant.on_duty(), mirror.pushing(sweep.directory), kept(sweep.directory):
        try:
            while not driver.over:
                tuner.run(
                    driver,
                    order=lambda record: Order(
                        trial=record.number,
                        config=sweep.trial_config(record),
                        directory=mirror.shown(sweep.trial_directory(record.number)),
                    ),
                    workers=spec.resources.most_workers,
                    min_workers=spec.resources.fewest_workers,
                    cpus_per_worker=spec.resources.cpus_per_worker,
                    gpus_per_worker=gpus_per_worker,
                    prefix_store=spec.resources.prefix_store,
                    boundaries=boundaries(spec, facts.num_blocks),
                    concurrency=concurrency,
                    allowed=allowed,
                    scratch=scratch,
                    on_change=attend,
                )
                assert not driver.busy, "Ray Tune came to its end, and trials still ran"
                attendant.obey()
            patience_s = _TRACKER_PATIENCE_S
        except KeyboardInterrupt:
            if not called_off or driver.life.wanted is not Wanted.CANCEL:
                raise
            driver.hold()
        finally:
            tracker.close(patience_s)
            shutil.rmtree(scratch, ignore_errors=True)
        driver.finish()
    warnings = list(tracker.warnings)
    if driver.exhausted:
        warnings.append(
            f"every point of the space has been tried, so the sweep ends after {len(driver.records())} of "
            f"{driver.target} trials; widen `parameters`, or allow search.duplicates"
        )
    life = driver.life
    return Outcome(wanted=life.wanted, reason=life.reason, results=tracker.locations(), warnings=warnings)


def _notice(driver: Driver) -> str | None:
    """What the sweep is doing besides training."""
    if driver.study.away:
        return f"its directory is out of reach; waiting for it, {LEDGER_PATIENCE_S / 60:g} min at most"
    life = driver.life
    if life.wanted is not Wanted.RUN:
        return f"ending ({life.reason})"
    if driver.steps or any(trial.results for trial in driver.records()):
        return None
    return "starting workers"
