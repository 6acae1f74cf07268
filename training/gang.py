"""A gang: a Ray Train run whose workers stay warm and serve one trial after another.

The only import of Ray in `training`. The owner of a gang (a Tune trainable) holds a `Gang`;
its rank 0 asks the gang's channel for orders and answers there; all ranks obey together. A
worker group that Ray Train has restarted greets again and is given its trial once more,
which goes on from its newest checkpoint. When the owner dies its channel dies with it, and
then the workers leave.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import traceback
import uuid
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
from ray.actor import ActorHandle

from training.config import TrialConfig
from training.reporter import Course, Evaluation, Progress, Verdict

_WAIT_S = 1.0
_MAX_RESTARTS = 3


@dataclass(frozen=True, kw_only=True)
class GangConfig:
    """What a gang is made of."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    storage: str
    """Directory for Ray Train's own files, seen by all nodes."""
    feed: ActorHandle | None = None
    """Actor whose `push(trial, news)` is told courses, progress and gangs (of no trial), without waiting."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One trial to train, from its newest checkpoint in `directory` if there is one."""

    trial: int
    config: TrialConfig
    directory: str
    micro_limit: int | None = None
    """Largest micro-batch that is known to fit, where a worker group has run out of memory."""


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """A worker group is up and waits for orders."""

    worker_pids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial ended: on its own, or as ordered by `Verdict.STOP`."""

    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A trial failed."""

    kind: Literal["failed", "diverged", "infeasible"] = "failed"
    error: str
    """One line."""
    details: str
    """The traceback."""


@dataclass(frozen=True, kw_only=True)
class Crashed:
    """A worker group cannot go on; Ray Train starts another."""

    too_large: int | None = None
    """The micro-batch that did not fit in memory, if that is why."""
    error: str


News = Greeting | Evaluation | Ended | Failed | Crashed


@dataclass(frozen=True, kw_only=True)
class Mustered:
    """What the feed is told of a new worker group, so that no owner's death strands its resources."""

    placement_group: str
    """Id, as hex."""
    channel: Any
    """The gang's channel, which lives as long as its owner."""


class GangLost(RuntimeError):
    """The gang cannot go on."""


class _Channel:
    """Mailboxes between a gang's owner and the sessions of its worker group. An async actor."""

    def __init__(self) -> None:
        self._news: asyncio.Queue[tuple[str, News]] = asyncio.Queue()
        self._orders: dict[str, asyncio.Queue[Order | Verdict | None]] = defaultdict(asyncio.Queue)

    async def ping(self) -> None:
        """Answers while the owner lives."""

    async def tell(self, session: str, news: News) -> None:
        await self._news.put((session, news))

    async def next_news(self, timeout_s: float) -> tuple[str, News] | None:
        try:
            return await asyncio.wait_for(self._news.get(), timeout_s)
        except TimeoutError:
            return None

    async def order(self, session: str, order: Order | Verdict | None) -> None:
        await self._orders[session].put(order)

    async def next_order(self, session: str) -> Order | Verdict | None:
        return await self._orders[session].get()


class Gang:
    """The owner's side of a gang. Starts at once and without waiting.

    Use from one thread: `begin` a trial, then `advance` until it returns `Ended` or `Failed`.
    """

    def __init__(self, config: GangConfig) -> None:
        self._config = config
        self._channel: Any = ray.remote(_Channel).options(num_cpus=0, max_concurrency=8).remote()
        self._session: str | None = None
        self._order: Order | None = None
        self._asked = False
        self._restarts = 0
        self._crash = "killed"
        self._lost: BaseException | None = None
        self.worker_pids: tuple[int, ...] = ()
        self._run = threading.Thread(target=self._fit, name="gang", daemon=True)
        self._run.start()

    def begin(self, order: Order) -> None:
        """Train a trial next. One that still runs is stopped first."""
        self.stop()
        self._order, self._restarts = order, 0
        if self._session is not None:
            self._send(order)

    def advance(self) -> Evaluation | Ended | Failed:
        """Let the trial go on to its next evaluation, or to its end.

        Raises:
            GangLost: if the gang cannot be started, or started again.
        """
        assert self._order is not None
        if self._asked:
            self._asked = False
            self._send(Verdict.CONTINUE)
        while True:
            news = self._next()
            if isinstance(news, Greeting):
                if self._restarts > _MAX_RESTARTS:
                    self._order = None
                    times = f"{self._restarts} times since the last checkpoint"
                    return Failed(error=f"workers died {times}, at last: {self._crash}", details="")
                if self._order.micro_limit == 0:
                    self._order = None
                    return Failed(kind="infeasible", error=self._crash, details="")
                self._send(self._order)
                continue
            assert not isinstance(news, Crashed)
            if isinstance(news, Evaluation):
                self._asked = True
                self._restarts = 0
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

    def _send(self, order: Order | Verdict | None) -> None:
        ray.get(self._channel.order.remote(self._session, order))

    def _next(self) -> News:
        """The next news of the present worker group; learns of a new one."""
        while True:
            if self._lost is not None:
                raise GangLost(f"the gang's workers cannot run: {_one_line(self._lost)}") from self._lost
            item = ray.get(self._channel.next_news.remote(_WAIT_S))
            if item is None:
                continue
            session, news = item
            if isinstance(news, Greeting):
                self._restarts += self._session is not None
                self._session, self.worker_pids = session, news.worker_pids
                self._asked = False
                return news
            if isinstance(news, Crashed):
                self._crash = news.error
                if news.too_large is not None and self._order is not None:
                    # The next group starts with half. To have found that out is no fault.
                    self._order = replace(self._order, micro_limit=news.too_large // 2)
                    self._restarts -= 1
            elif session == self._session:
                return news

    def _fit(self) -> None:
        # Read by the controller, which inherits them: the default finds a dead worker after 2 s.
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
        os.environ["RAY_TRAIN_METRICS_ENABLED"] = "0"
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        config = self._config
        try:
            TorchTrainer(
                _serve,
                train_loop_config={"channel": self._channel, "config": config},
                scaling_config=ScalingConfig(
                    num_workers=config.workers,
                    use_gpu=config.gpus_per_worker > 0,
                    resources_per_worker={
                        "CPU": config.cpus_per_worker,
                        **({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}),
                    },
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


def _serve(settings: dict[str, Any]) -> None:
    """A worker's life: orders, until there are none."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    import torch

    from training.loop import train
    from training.proof import BrokenProof
    from training.team import Team
    from training.trial import Diverged, Infeasible, OutOfMemory
    from training.workspace import Workspace

    # Errors that every rank comes to by itself, on the same figures.
    agreed = (ValueError, BrokenProof, Diverged, Infeasible)
    config: GangConfig = settings["config"]
    channel = settings["channel"]
    torch.set_num_threads(config.cpus_per_worker)
    team = Team()
    workspace = Workspace(team)
    # What is imported stays: the collections between phases need not look at it.
    gc.collect()
    gc.freeze()
    session = team.broadcast(uuid.uuid4().hex if team.leads else None)
    pids = tuple(team.gather(os.getpid()))
    if team.leads:
        group = ray.util.get_current_placement_group()
        if config.feed is not None and group is not None:
            config.feed.push.remote(None, Mustered(placement_group=group.id.hex(), channel=channel))
        ray.get(channel.tell.remote(session, Greeting(worker_pids=pids)))
    while True:
        order = team.broadcast(ray.get(channel.next_order.remote(session)) if team.leads else None)
        if order is None:
            return
        assert isinstance(order, Order), order
        news: Ended | Failed
        try:
            verdict = train(
                order.config,
                workspace=workspace,
                reporter=_Reporter(order.trial, session, channel, config.feed),
                directory=Path(order.directory),
                micro_limit=order.micro_limit,
            )
            news = Ended(verdict=verdict)
        except Exception as error:
            if team.size > 1 and not isinstance(error, agreed):
                # Other ranks may wait in a collective that this one has left: start all anew.
                too_large = error.micro_batch if isinstance(error, OutOfMemory) else None
                crash = Crashed(error=_one_line(error), too_large=too_large)
                ray.get(channel.tell.remote(session, crash))
                raise
            kinds = {Diverged: "diverged", Infeasible: "infeasible"}
            news = Failed(
                kind=kinds.get(type(error), "failed"),  # type: ignore[arg-type]
                error=_one_line(error),
                details=traceback.format_exc(),
            )
        if team.leads:
            ray.get(channel.tell.remote(session, news))


@dataclass(frozen=True)
class _Reporter:
    """A trial's news from rank 0: evaluations to the owner, the rest to the feed."""

    trial: int
    session: str
    channel: Any
    feed: Any

    def started(self, course: Course) -> None:
        if self.feed is not None:
            self.feed.push.remote(self.trial, course)

    def progressed(self, progress: Progress) -> None:
        if self.feed is not None:
            self.feed.push.remote(self.trial, progress)

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        ray.get(self.channel.tell.remote(self.session, evaluation))
        return Verdict(ray.get(self.channel.next_order.remote(self.session)))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__
