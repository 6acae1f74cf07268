"""Several sweeps on one cluster: each is admitted gang by gang.

A gang is one placement group, so none waits with half of what it needs, and sweeps cannot deadlock. What is
decided here is how many gangs each may have: every sweep one, before any has a second; then by priority,
up to each one's share; then what is left, evenly. A sweep above its number lets gangs end with their trials.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.capacity import GangShape

_BEAT_S = 1.0
_EXPIRES_S = 20.0
_PATIENCE_S = 10.0
# So long a wait for the first gang counts as much as one step of priority, so that nobody waits for ever.
_STEP_S = 600.0
_ACTOR, _NAMESPACE = "thaw-admission", "thaw"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sweep, as those that share its cluster see it."""

    sweep: str
    shape: GangShape
    wants: int
    """Gangs that it could use now."""
    holds: int = 0
    """Gangs that it has."""
    priority: int = 0
    share: int | None = None
    """Gangs that it may have while others wait; as many as its priority gives it where unset."""
    since: float = 0.0
    """When it came, in seconds."""


def allot(claims: Sequence[Claim], nodes: Sequence[Mapping[str, float]], now: float) -> dict[str, int]:
    """How many gangs each sweep may have; together they fit on `nodes`."""
    room = _Room(nodes)
    given = {claim.sweep: 0 for claim in claims}
    wanting = [claim for claim in claims if claim.wants > 0]

    def first(claim: Claim) -> tuple[bool, float, float, str]:
        waited = (now - claim.since) / _STEP_S
        return (claim.holds == 0, -(claim.priority + waited), claim.since, claim.sweep)

    for claim in sorted(wanting, key=first):
        given[claim.sweep] = int(room.take(claim.shape))
    for above_share in (False, True):
        open_ = [claim for claim in wanting if given[claim.sweep]]
        while open_:
            # Above its share none has a claim by priority: what is left goes evenly.
            claim = min(
                open_,
                key=lambda c: (0 if above_share else -c.priority, given[c.sweep], c.since, c.sweep),
            )
            most = claim.wants
            if not above_share and claim.share is not None:
                most = min(most, claim.share)
            if given[claim.sweep] < most and room.take(claim.shape):
                given[claim.sweep] += 1
            else:
                open_.remove(claim)
    return given


class _Room:
    """What is left of nodes while gangs are put on them."""

    def __init__(self, nodes: Sequence[Mapping[str, float]]) -> None:
        self._nodes = [_Node(node) for node in nodes]

    def take(self, shape: GangShape) -> bool:
        """Put a gang on the nodes, if it fits."""
        fewest = shape.workers if shape.fewest_workers is None else shape.fewest_workers
        before = [node.copy() for node in self._nodes]
        placed = 0
        for node in self._nodes:
            while placed < shape.workers and node.take(shape.cpus_per_worker, shape.gpus_per_worker):
                placed += 1
        if placed >= fewest:
            return True
        self._nodes = before
        return False


class _Node:
    """What is left of a node: CPUs, and of each of its GPUs."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self._cpus = resources.get("CPU", 0.0)
        whole, rest = divmod(resources.get("GPU", 0.0), 1.0)
        self._gpus = [1.0] * int(whole) + [rest] * (rest > 0)

    def copy(self) -> _Node:
        """Another like it."""
        made = _Node({"CPU": self._cpus})
        made._gpus = list(self._gpus)
        return made

    def take(self, cpus: float, gpus: float) -> bool:
        """Put a worker on it, if it fits: on whole GPUs, or on the fullest that has the fraction left."""
        if self._cpus + 1e-6 < cpus:
            return False
        each, count = (1.0, int(gpus)) if gpus >= 1 else (gpus, int(gpus > 0))
        open_ = sorted((left, index) for index, left in enumerate(self._gpus) if left + 1e-6 >= each)
        if len(open_) < count:
            return False
        for _, index in open_[:count]:
            self._gpus[index] -= each
        self._cpus -= cpus
        return True


class Desk:
    """Keeps the claims of all sweeps on a cluster, as an actor there."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[Claim, float]] = {}

    def claim(self, claim: Claim, nodes: Sequence[Mapping[str, float]]) -> int:
        """Enter or renew a claim; how many gangs its sweep may have now."""
        now = time.monotonic()
        known = self._claims.get(claim.sweep)
        since = known[0].since if known else now
        self._claims[claim.sweep] = (replace(claim, since=since), now)
        self._claims = {n: (c, at) for n, (c, at) in self._claims.items() if now - at < _EXPIRES_S}
        return allot([c for c, _ in self._claims.values()], nodes, now)[claim.sweep]

    def leave(self, sweep: str) -> int:
        """Withdraw a claim; how many are left."""
        self._claims.pop(sweep, None)
        return len(self._claims)


@contextlib.contextmanager
def admitted(
    name: str, shape: GangShape, address: str | None, *, priority: int, share: int | None
) -> Iterator[Callable[[int, int], int] | None]:
    """Share the connected cluster with other sweeps; yields `allowed(wants, holds)`.

    It says at once how many gangs the sweep may have now. None where the cluster is the sweep's own, without
    `address`.
    """
    if address is None:
        yield None
        return
    claim = Claim(
        sweep=f"{name}-{uuid.uuid4().hex[:8]}", shape=shape, wants=1, priority=priority, share=share
    )
    place = _Place(claim)
    place.renew()
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(_BEAT_S):
            place.renew()

    keeper = threading.Thread(target=keep, name="admission", daemon=True)
    keeper.start()
    try:
        yield place.allowed
    finally:
        ended.set()
        keeper.join()
        place.leave()


class _Place:
    """A sweep's place at the desk. Where that cannot be reached, it goes on as if it were alone."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._granted: int | None = None
        self._desk: Any = None

    def allowed(self, wants: int, holds: int) -> int:
        """Gangs that the sweep may have now."""
        self._claim = replace(self._claim, wants=wants, holds=holds)
        return wants if self._granted is None else self._granted

    def renew(self) -> None:
        """Renew the claim; hear what is granted."""
        import ray

        from cluster.connect import possible_nodes

        try:
            if self._desk is None:
                here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
                options = {
                    "name": _ACTOR,
                    "namespace": _NAMESPACE,
                    "lifetime": "detached",
                    "get_if_exists": True,
                }
                self._desk = ray.remote(Desk).options(num_cpus=0, label_selector=here, **options).remote()
            nodes = [{name: node.get(name, 0.0) for name in ("CPU", "GPU")} for node in possible_nodes()]
            self._granted = ray.get(self._desk.claim.remote(self._claim, nodes), timeout=_PATIENCE_S)
        except ray.exceptions.RayError:  # it went with its node, or with the last sweep: another comes
            self._desk, self._granted = None, None

    def leave(self) -> None:
        """Withdraw the claim; the last one closes the desk."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            if self._desk is not None:
                left = ray.get(self._desk.leave.remote(self._claim.sweep), timeout=_PATIENCE_S)
                if left == 0:
                    ray.kill(self._desk)
