"""Builds and runs the Ray Tune `Tuner` of a sweep, and listens to its trials meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import PlacementGroupID, tune
from ray.util.placement_group import PlacementGroup, remove_placement_group

from search.driver import Driver
from search.records import TrialRecord
from search.schedulers.tune import TuneScheduler
from search.searcher import StudySearcher
from search.trainable import GangTrainable
from training.gang import GangConfig, Mustered, Order

_LISTEN_INTERVAL_S = 0.25
_REAP_INTERVAL_S = 2.0
# Of a trial whose trainable was killed; each starts a gang anew and goes on from a checkpoint.
_RESTARTS = 3


class _Feed:
    """Courses and progress of all trials, kept until the driver fetches them. An actor."""

    def __init__(self) -> None:
        self._items: list[tuple[int | None, Any]] = []

    def push(self, trial: int | None, news: Any) -> None:
        self._items.append((trial, news))

    def drain(self) -> list[tuple[int | None, Any]]:
        items, self._items = self._items, []
        return items


def run(
    driver: Driver,
    *,
    order: Callable[[TrialRecord], Order],
    workers: int,
    cpus_per_worker: int,
    gpus_per_worker: float,
    concurrency: int,
    scratch: Path,
    on_change: Callable[[], None],
) -> None:
    """Run the driver's trials on the Ray cluster that is connected, until none are left.

    Args:
        concurrency: trials at a time, each on a gang of its own.
        scratch: directory for Ray's own files.
        on_change: called a few times a second, from another thread.
    """
    # Tune's loggers and pickled snapshots are not needed: the study is the ledger.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(10**9)
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    # Ctrl-C is ours: Tune would wait for the running trials' next evaluations.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    feed: Any = ray.remote(_Feed).options(num_cpus=0).remote()
    gang = GangConfig(
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        storage=str(scratch / "train"),
        feed=feed,
    )
    trainable = tune.with_resources(
        tune.with_parameters(GangTrainable, gang=gang),
        # Next to nothing, but not nothing, and no CPU: those are the gang's.
        tune.PlacementGroupFactory([{"memory": 1}]),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(driver, order=order, concurrency=concurrency),
            scheduler=TuneScheduler(driver),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
        ),
    )
    ended = threading.Event()
    listener = threading.Thread(
        target=_listen, args=(driver, feed, on_change, ended), name="feed", daemon=True
    )
    listener.start()
    try:
        tuner.fit()
    finally:
        ended.set()
        listener.join()


def _listen(driver: Driver, feed: Any, on_change: Callable[[], None], ended: threading.Event) -> None:
    """Hand the feed's items to the driver until the sweep has ended and the feed is dry."""
    gangs: dict[str, Any] = {}
    reaped_at = time.monotonic()
    while True:
        last = ended.wait(_LISTEN_INTERVAL_S)
        try:
            for trial, news in ray.get(feed.drain.remote()):
                if isinstance(news, Mustered):
                    gangs[news.placement_group] = news.channel
                else:
                    driver.heard(trial, news)
            if time.monotonic() - reaped_at > _REAP_INTERVAL_S:
                _reap(gangs)
                reaped_at = time.monotonic()
        except ray.exceptions.RayError:
            return  # the cluster is going
        on_change()
        if last:
            return


def _reap(gangs: dict[str, Any]) -> None:
    """Free the resources of gangs whose owner died, and forget those.

    Ray does it too, but only where its dashboard runs.
    """
    for group, channel in list(gangs.items()):
        try:
            ray.get(channel.ping.remote(), timeout=_REAP_INTERVAL_S)
        except ray.exceptions.GetTimeoutError:
            continue
        except ray.exceptions.RayActorError:
            del gangs[group]
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
