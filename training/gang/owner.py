"""The owner's side of a gang, and the channel to its workers."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import ray

from training.gang import scaling
from training.gang.meeting import Workers
from training.gang.messages import (
    Crashed,
    Ended,
    Failed,
    GangConfig,
    GangLost,
    Greeting,
    News,
    Order,
    Regroup,
    Word,
    cause,
    one_line,
)
from training.gang.workers import serve
from training.reporter import Evaluation, Verdict
from training.sizes import Sizes, tighter

_WAIT_S = 1.0
_WATCH_INTERVAL_S = 2.0
_MAX_RESTARTS = 3

log = logging.getLogger(__name__)


class _Channel:
    """Mailboxes between a gang's owner and the sessions of its worker group. An async actor."""

    def __init__(self) -> None:
        self._news: asyncio.Queue[tuple[str, News]] = asyncio.Queue()
        self._orders: dict[str, asyncio.Queue[Word]] = defaultdict(asyncio.Queue)
        self._leaving: set[str] = set()

    async def tell(self, session: str, news: News) -> None:
        await self._news.put((session, news))

    async def next_news(self, timeout_s: float) -> tuple[str, News] | None:
        try:
            return await asyncio.wait_for(self._news.get(), timeout_s)
        except TimeoutError:
            return None

    async def leave(self, session: str) -> None:
        self._leaving.add(session)

    async def must_leave(self, session: str) -> bool:
        return session in self._leaving

    async def order(self, session: str, order: Word) -> None:
        await self._orders[session].put(order)

    async def next_order(self, session: str) -> Word:
        return await self._orders[session].get()


class Gang:
    """The owner's side of a gang. Starts at once and without waiting.

    Use from one thread: `begin` a trial, then `advance` until it returns `Ended` or `Failed`.
    """

    def __init__(self, config: GangConfig) -> None:
        log.debug("gang asked for")
        self._config = config
        # On the owner's node: with another one it would lose a gang that is still whole.
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        self._channel: Any = (
            ray.remote(_Channel).options(num_cpus=0, max_concurrency=8, label_selector=here).remote()
        )
        self._session: str | None = None
        self._order: Order | None = None
        self._asked = False
        self._restarts = 0
        self._step = -1
        self._fresh = False
        self._nodes: Counter[str] = Counter()
        self._watched_at = 0.0
        self._stillborn = 0
        self._crash = Crashed(error="killed")
        self._limits: dict[str, Sizes] = {}
        self._lost: BaseException | None = None
        self.worker_pids: tuple[int, ...] = ()
        self._run = threading.Thread(target=self._fit, name="gang", daemon=True)
        self._run.start()

    def begin(self, order: Order) -> None:
        """Train a trial next. One that still runs is stopped first."""
        self.stop()
        log.debug("trial %d given", order.trial)
        self._order, self._restarts, self._step = order, 0, -1
        self._crash = Crashed(error="killed")
        if self._session is not None:
            self._send_order()

    def advance(self) -> Evaluation | Ended | Failed:
        """Let the trial go on to its next evaluation, or to its end.

        Raises:
            GangLost: if the gang cannot be started, or started again.
        """
        assert self._order is not None
        if self._asked:
            self._asked = False
            self._send(Regroup() if self._may_grow() else Verdict.CONTINUE)
        while True:
            news = self._next()
            if isinstance(news, Greeting):
                if self._restarts > _MAX_RESTARTS:
                    self._order = None
                    times = f"{self._restarts} times since the last checkpoint"
                    return Failed(error=f"workers died {times}, at last: {self._crash.error}", details="")
                if self._crash.infeasible:
                    self._order = None
                    return Failed(kind="infeasible", error=self._crash.error, details="")
                self._send_order()
                continue
            assert not isinstance(news, Crashed)
            if isinstance(news, Evaluation):
                self._asked = True
                if news.step > self._step:  # not one that a new group tells again
                    self._restarts, self._fresh = 0, True
                self._step = max(self._step, news.step)
            else:
                self._order = None
            return news

    def stop(self) -> None:
        """Stop the trial that waits for a verdict, if one does; wait until the gang is free."""
        if self._asked:
            self._asked = False
            self._send(Verdict.STOP)
            while isinstance(self._next(), Evaluation):
                pass
        self._order = None

    def close(self, timeout_s: float = 5.0) -> None:
        """Send the workers home and wait, for a while, until they are gone."""
        try:
            if self._asked:
                self._send(Verdict.STOP)
            if self._session is not None:
                self._send(None)
                self._run.join(timeout_s)
        finally:
            ray.kill(self._channel)

    def _may_grow(self) -> bool:
        """Whether there is room for more workers, at an evaluation that no larger group was tried at yet."""
        config, workers = self._config, len(self.worker_pids)
        if config.min_workers is None or workers >= config.workers or not self._fresh:
            return False
        self._fresh = False
        nodes = scaling.free_nodes(self._nodes, config.worker_resources)
        return scaling.room(nodes, config.worker_resources) > workers

    def _watch_nodes(self) -> None:
        """Tell the workers to leave where a node of theirs is about to be taken away."""
        if self._nodes and time.monotonic() - self._watched_at > _WATCH_INTERVAL_S:
            self._watched_at = time.monotonic()
            if not scaling.draining().isdisjoint(self._nodes):
                self._nodes.clear()  # once is enough; the next group has others
                ray.get(self._channel.leave.remote(self._session))

    def _send_order(self) -> None:
        assert self._order is not None
        # A new worker group knows nothing of what the last one found out.
        self._send(replace(self._order, limits=self._limits))

    def _send(self, order: Word) -> None:
        ray.get(self._channel.order.remote(self._session, order))

    def _next(self) -> News:
        """The next news of the present worker group; learns of a new one."""
        while True:
            if self._lost is not None:
                raise GangLost(f"the gang's workers cannot run: {one_line(self._lost)}") from self._lost
            self._watch_nodes()
            item = ray.get(self._channel.next_news.remote(_WAIT_S))
            if item is None:
                continue
            session, news = item
            if isinstance(news, Greeting):
                self._restarts += self._session is not None
                self._stillborn = 0
                self._session, self.worker_pids = session, news.worker_pids
                self._nodes = Counter(news.nodes)
                self._asked = False
                return news
            if isinstance(news, Crashed):
                self._crash = cause(self._crash, news)
                self._stillborn += news.stillborn
                if self._stillborn > _MAX_RESTARTS:
                    raise GangLost(f"the gang's workers cannot start: {news.error}")
                for at, sizes in news.limits.items():
                    self._limits[at] = tighter(sizes, self._limits.get(at))
                # To have found out what fits is no fault.
                self._restarts -= bool(news.limits) or news.planned
            elif session == self._session:
                return news

    def _fit(self) -> None:
        # Read by the controller, which inherits them: the default finds a dead worker after 2 s.
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
        os.environ["RAY_TRAIN_METRICS_ENABLED"] = "0"
        # Another process for each group; the owner looks for drains itself.
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
        from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        config = self._config

        class Trainer(DataParallelTrainer):
            def _create_default_callbacks(self) -> list[Any]:
                # Each starts a process. No data goes through Ray; and `orphans.reap` frees the groups of dead
                # gangs, while Ray's cleaner of a killed one stays for good where there is no State API.
                unwanted = (DatasetsCallback, PlacementGroupCleanerCallback)
                return [c for c in super()._create_default_callbacks() if not isinstance(c, unwanted)]

            def _initialize_and_run_controller(self, **settings: Any) -> Any:
                fewest = config.workers if config.min_workers is None else config.min_workers
                settings["scaling_policy"] = scaling.GangScaling(self.scaling_config, fewest, config.workers)
                return super()._initialize_and_run_controller(**settings)

        try:
            Trainer(
                serve,
                train_loop_config={"channel": self._channel, "config": config},
                backend_config=Workers(),
                scaling_config=ScalingConfig(
                    num_workers=config.workers,
                    use_gpu=config.gpus_per_worker > 0,
                    resources_per_worker=config.worker_resources,
                ),
                run_config=RunConfig(
                    name=f"gang-{uuid.uuid4().hex[:8]}",
                    storage_path=config.storage,
                    # Restarts are counted for each trial, by the owner.
                    failure_config=FailureConfig(max_failures=-1),
                ),
            ).fit()
        except BaseException as error:
            self._lost = error
        else:
            self._lost = GangLost("they left")
