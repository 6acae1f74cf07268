"""The workers' side of a gang: a life of orders. Runs in Ray Train's worker processes."""

from __future__ import annotations

import gc
import logging
import os
import time
import traceback
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import ray

from training.gang.messages import (
    Crashed,
    Ended,
    Failed,
    GangConfig,
    Greeting,
    Order,
    Regroup,
    Word,
    one_line,
)
from training.reporter import Course, Evaluation, Progress, Verdict

if TYPE_CHECKING:
    from training.team import Team
    from training.workspace import Workspace

_ASK_INTERVAL_S = 1.0

log = logging.getLogger(__name__)


class Regrouping(BaseException):
    """Ends a worker group, and is no failure of the trial: the next group goes on with it."""


def serve(settings: dict[str, Any]) -> None:
    """A worker's life: made ready, then orders, until there are none."""
    log.debug("worker started")
    channel = settings["channel"]
    try:
        team, workspace = _ready(settings["config"])
    except Exception as error:
        ray.get(channel.tell.remote("", Crashed(error=one_line(error), stillborn=True)))
        raise
    _obey(settings["config"], channel, team, workspace)


def _ready(config: GangConfig) -> tuple[Team, Workspace]:
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    import torch

    from training import memory
    from training.gang.meeting import meet
    from training.team import Team
    from training.workspace import Workspace

    meet()
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    if 0 < config.gpus_per_worker < 1 and torch.cuda.is_available():  # the rest is for other gangs
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(memory.fraction(config.gpus_per_worker, total))
    team = Team()
    return team, Workspace(team, prefix_store=config.prefix_store, boundaries=config.boundaries)


def _obey(config: GangConfig, channel: Any, team: Team, workspace: Workspace) -> None:
    from training.loop import train
    from training.proof import BrokenProof
    from training.store import Place, near
    from training.trial import Diverged, Infeasible, OutOfMemory

    # Errors that every rank comes to by itself, on the same figures.
    agreed = (ValueError, BrokenProof, Diverged, Infeasible)
    log.debug("worker ready")
    # What is imported stays: the collections between phases need not look at it.
    gc.collect()
    gc.freeze()
    session = team.broadcast(uuid.uuid4().hex if team.leads else None)
    pids, nodes = zip(*team.gather((os.getpid(), ray.get_runtime_context().get_node_id())), strict=True)
    if team.leads:
        with suppress(ray.exceptions.ActorDiedError):  # then there is no order either
            ray.get(channel.tell.remote(session, Greeting(worker_pids=pids, nodes=nodes)))
    while True:
        order = team.broadcast(_next_order(channel, session) if team.leads else None)
        if order is None:
            return
        assert isinstance(order, Order), order
        log.debug("trial %d taken", order.trial)
        news: Ended | Failed
        try:
            place = Place(order.directory)
            with near(place) as directory:
                verdict = train(
                    order.config,
                    workspace=workspace,
                    reporter=_Reporter(order.trial, session, channel, config.feed),
                    directory=directory,
                    remote=None if place.is_local else place,
                    limits=order.limits,
                )
            if verdict is Verdict.LEAVE:
                if team.leads:
                    gone = Crashed(error="a node of the gang was taken away", planned=True)
                    ray.get(channel.tell.remote(session, gone))
                raise Regrouping
            news = Ended(verdict=verdict)
        except Exception as error:
            if team.size > 1 and not isinstance(error, agreed):
                # Other ranks may wait in a collective that this one has left: start all anew.
                crash = Crashed(error=one_line(error))
                if isinstance(error, OutOfMemory):
                    known = {} if error.smaller is None else {error.at: error.smaller}
                    crash = replace(crash, limits=known, infeasible=error.smaller is None)
                ray.get(channel.tell.remote(session, crash))
                raise
            kinds = {Diverged: "diverged", Infeasible: "infeasible"}
            news = Failed(
                kind=kinds.get(type(error), "failed"),  # type: ignore[arg-type]
                error=one_line(error),
                details=traceback.format_exc(),
            )
        log.debug("trial %d ended", order.trial)
        if team.leads:
            ray.get(channel.tell.remote(session, news))


def _next_order(channel: Any, session: str) -> Word:
    """What to do next: nothing, where the gang was closed before its workers had started."""
    try:
        return cast(Word, ray.get(channel.next_order.remote(session)))
    except ray.exceptions.ActorDiedError:
        return None


@dataclass
class _Reporter:
    """A trial's news from rank 0: evaluations to the owner, the rest to the feed."""

    trial: int
    session: str
    channel: Any
    feed: Any
    asked_at: float = 0.0

    def started(self, course: Course) -> None:
        if self.feed is not None:
            self.feed.push.remote(self.trial, course)

    def progressed(self, progress: Progress) -> Verdict | None:
        if self.feed is not None:
            self.feed.push.remote(self.trial, progress)
        if time.monotonic() - self.asked_at < _ASK_INTERVAL_S:
            return None
        self.asked_at = time.monotonic()
        return Verdict.LEAVE if ray.get(self.channel.must_leave.remote(self.session)) else None

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        log.debug("trial %d evaluated", self.trial)
        ray.get(self.channel.tell.remote(self.session, evaluation))
        word = ray.get(self.channel.next_order.remote(self.session))
        if isinstance(word, Regroup):
            raise Regrouping
        return Verdict(word)
