"""What is found out about a cluster before anything is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cluster.capacity import GangShape
from cluster.gpus import Gpu

Probe = Callable[[], str]
"""Tries something and says what it found; raises where it fails. Runs on a node, so it must travel there."""

Reduce = Callable[[int, int, str, bool], tuple[str, float]]
"""One rank of an all-reduce, of `(rank, size, HOST:PORT of rank 0, gpu)`: backend, and bandwidth in GB/s."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a probe."""

    ok: bool
    said: str


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What one node says of itself."""

    host: str
    versions: Mapping[str, str]
    """Of `ray`, `python` and `thaw`, as far as they are there."""
    skew_s: float
    """How far its clock is ahead of this process's."""
    skew_error_s: float
    """How far that may be off."""
    shm_bytes: int
    """Size of /dev/shm."""
    shm_free_bytes: int
    disk_free_bytes: int
    """Where Ray has its session."""
    gpus_promised: float
    """What Ray hands out there."""
    gpus: tuple[Gpu, ...]
    probes: Mapping[str, Found] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Need:
    """What the sweep asks of the cluster, as far as one is given."""

    shape: GangShape | None = None
    disk_bytes: int | None = None
    """Of its checkpoints and models, at most."""
    storage_free_bytes: int | None = None
    """What is free where sweeps are kept; None where that cannot be known, as in an object store."""


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What is to be tried, of things that `cluster` does not know."""

    probes: Mapping[str, Probe]
    """What is tried on every node, by the name of its check."""
    reduce: Reduce
    tracking: tuple[bool, str] | None
    """Whether W&B takes the key that is at hand, and what there is to say; None where it is off."""
    need: Need


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a cluster."""

    versions: Mapping[str, str]
    """Of this process."""
    nodes: tuple[NodeFacts, ...]
    silent: Mapping[str, str]
    """Hosts that did not answer -> why."""
    state_api: Found
    orphans: tuple[str, ...]
    """Ids of placement groups whose job has ended."""
    all_reduce: Found
    gigabytes_per_s: float | None
    tracking: Found | None
    """Whether W&B can be reached with the key that is at hand; None where it is off."""
    need: Need
