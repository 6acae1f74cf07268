"""Builds and runs the Ray Tune `Tuner` of a sweep, and listens to its trials meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.progress_reporter import TrialProgressCallback

from search.budget import DEFAULT_PRICE
from search.driver import Driver
from search.records import TrialRecord
from search.schedulers.tune import TuneScheduler
from search.searcher import Allowed, StudySearcher
from search.trainable import GangTrainable
from training.config import PrefixStoreConfig
from training.gang import GangConfig, Order
from training.gang.orphans import reap

_LISTEN_INTERVAL_S = 0.25
_NODE_GROUP = "ray.io/node-group"
_REAP_INTERVAL_S = 2.0
# Of a trial whose trainable was killed; each starts a gang anew and goes on from a checkpoint.
_RESTARTS = 10
# Owners of gangs are small: they need not be on nodes that may be taken away, as workers are.
_NOT_SPOT = {"ray.io/market-type": "!spot"}


class _Feed:
    """Courses and progress of all trials, kept until the driver fetches them. An actor."""

    def __init__(self) -> None:
        self._items: list[tuple[int, Any]] = []

    def push(self, trial: int, news: Any) -> None:
        self._items.append((trial, news))

    def drain(self) -> list[tuple[int, Any]]:
        items, self._items = self._items, []
        return items


def run(
    driver: Driver,
    *,
    order: Callable[[TrialRecord], Order],
    workers: int,
    min_workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float,
    prefix_store: PrefixStoreConfig,
    boundaries: tuple[int, ...],
    concurrency: int,
    allowed: Allowed | None,
    scratch: Path,
    on_change: Callable[[], None],
) -> None:
    """Run the driver's trials on the Ray cluster that is connected, until none are left.

    Args:
        boundaries: how many leading blocks trials may freeze.
        concurrency: trials at a time, each on a gang of its own.
        allowed: how many of them, where other sweeps share the cluster.
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
    # Gangs start at the same time: by default Tune asks for a trial only when the last one has its actor.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(concurrency)
    _keep_keys_home()
    # Where the driver is, and with it never on a node that may be taken away.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    feed: Any = ray.remote(_Feed).options(num_cpus=0, label_selector=here).remote()
    gang = GangConfig(
        workers=workers,
        min_workers=min_workers if min_workers < workers else None,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        prefix_store=prefix_store,
        boundaries=boundaries,
        storage=str(scratch / "train"),
        feed=feed,
    )
    trainable = tune.with_resources(
        tune.with_parameters(GangTrainable, gang=gang),
        # Next to nothing, but not nothing, and no CPU: those are the gang's.
        tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=[_NOT_SPOT]),
    )
    listener = _Listener(driver, feed)
    searcher = StudySearcher(
        driver, order=order, concurrency=concurrency, allowed=allowed, listen=listener.listen
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=TuneScheduler(driver, searcher.spare, listener.listen),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[_NoOutput()],
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
        ),
    )
    ended = threading.Event()
    listening = threading.Thread(target=listener.keep, args=(on_change, ended), name="feed", daemon=True)
    listening.start()
    try:
        tuner.fit()
    finally:
        ended.set()
        listening.join()
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster is going
            ray.kill(feed)


def node_types() -> dict[str, int]:
    """The cluster's nodes by type: Ray's node group, `default` where a node is in none."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return dict(Counter(node.get("Labels", {}).get(_NODE_GROUP) or DEFAULT_PRICE for node in alive))


def _keep_keys_home() -> None:
    """Keep Tune from sending the driver's AWS keys to its trainables: they would stand in process lists.

    Workers have the keys of their node, as every process there.
    """
    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not name.startswith("AWS_")}


class _NoOutput(TrialProgressCallback):
    """In place of Tune's own, which prints, and for that keeps every trial as long as the sweep lasts."""

    def on_trial_result(self, *arguments: Any, **info: Any) -> None:
        """Print nothing."""

    on_trial_error = on_trial_complete = on_trial_result


class _Listener:
    """Hands the feed's items to the driver. Safe to call from the Tune loop and from a thread of its own."""

    def __init__(self, driver: Driver, feed: Any) -> None:
        self._driver = driver
        self._feed = feed
        self._lock = threading.Lock()
        self._reaped_at = time.monotonic()

    def listen(self) -> None:
        """Hand on all that has come; nothing where the cluster is going."""
        with contextlib.suppress(ray.exceptions.RayError), self._lock:
            for trial, news in ray.get(self._feed.drain.remote()):
                self._driver.heard(trial, news)

    def keep(self, on_change: Callable[[], None], ended: threading.Event) -> None:
        """Listen until the sweep has ended and the feed is dry, and free what dead gangs hold."""
        last = False
        while not last:
            last = ended.wait(_LISTEN_INTERVAL_S)
            self.listen()
            if time.monotonic() - self._reaped_at > _REAP_INTERVAL_S:
                with contextlib.suppress(ray.exceptions.RayError):  # the cluster is going
                    reap()
                self._reaped_at = time.monotonic()
            on_change()
