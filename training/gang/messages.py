"""What a gang is made of, and what its owner and its workers say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ray.actor import ActorHandle

from training.config import PrefixStoreConfig, TrialConfig
from training.reporter import Evaluation, Verdict
from training.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class GangConfig:
    """What a gang is made of."""

    workers: int
    """Worker processes, at most."""
    min_workers: int | None = None
    """With how many it still goes on, and starts; with all of them where unset."""
    cpus_per_worker: float
    gpus_per_worker: float
    storage: str
    """Directory for Ray Train's own files, seen by all nodes."""
    prefix_store: PrefixStoreConfig = field(default_factory=PrefixStoreConfig)
    """Where the output of frozen blocks is kept on its nodes."""
    boundaries: tuple[int, ...] = ()
    """How many leading blocks its trials may freeze, ascending."""
    feed: ActorHandle | None = None
    """Actor whose `push(trial, news)` is told courses and progress, without waiting."""

    @property
    def worker_resources(self) -> dict[str, float]:
        """What Ray is asked for, for each worker."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker, **gpus}


@dataclass(frozen=True, kw_only=True)
class Order:
    """One trial to train, from its newest checkpoint in `directory` if there is one."""

    trial: int
    config: TrialConfig
    directory: str
    """A path that all nodes see, or a URI."""
    limits: Mapping[str, Sizes] = field(default_factory=dict)
    """What is known to fit in the gang's memory, where a worker group has run out of it."""


@dataclass(frozen=True, kw_only=True)
class Regroup:
    """Leave the trial at its newest checkpoint, so that a larger group may go on with it."""


Word = Order | Verdict | Regroup | None
"""What an owner says to a worker group; None sends it home."""


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """A worker group is up and waits for orders."""

    worker_pids: tuple[int, ...]
    nodes: tuple[str, ...] = ()
    """The node of each worker, by id."""


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

    limits: Mapping[str, Sizes] = field(default_factory=dict)
    """What to hold the next one to, where this one ran out of memory."""
    stillborn: bool = False
    """Whether it could not even start."""
    planned: bool = False
    """Whether it left at a checkpoint, as it was told."""
    infeasible: bool = False
    """Whether the trial does not fit in memory at all."""
    error: str


def cause(before: Crashed, news: Crashed) -> Crashed:
    """What a trial is judged by, of what workers have said since it began.

    Who finds that it does not fit in memory knows; the others then only miss their connection.
    """
    return before if before.infeasible else news


News = Greeting | Evaluation | Ended | Failed | Crashed


class GangLost(RuntimeError):
    """The gang cannot go on."""


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__
