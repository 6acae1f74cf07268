"""Gathers the facts on a connected Ray cluster: an actor on every node, and one gang for an all-reduce."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster import gpus
from cluster.capacity import GangShape, gangs_that_fit
from cluster.doctor.facts import Brought, Facts, Found, NodeFacts, Probe, Reduce

_PATIENCE_S = 60.0
_PROBE_PATIENCE_S = 120.0
_GANG_PATIENCE_S = 20.0
_CLOCK_TRIES = 5


class _Examiner:
    """What runs on a node."""

    def now(self) -> float:
        return time.time()

    def facts(self) -> dict[str, Any]:
        session = os.path.realpath("/tmp/ray/session_latest")
        directory = os.environ.get("RAY_TMPDIR", session if os.path.isdir(session) else "/tmp")
        shm = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else shutil.disk_usage("/tmp")
        return {
            "host": socket.gethostname(),
            "versions": own_versions(),
            "shm_bytes": shm.total,
            "shm_free_bytes": shm.free,
            "disk_free_bytes": shutil.disk_usage(directory).free,
            "gpus": gpus.here(),
        }

    def probe(self, probe: Probe) -> Found:
        try:
            return Found(ok=True, said=probe())
        except Exception as error:
            return Found(ok=False, said=_line(error))

    def address(self) -> str:
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def reduce(self, reduce: Reduce, rank: int, size: int, address: str, gpu: bool) -> tuple[str, float]:
        return reduce(rank, size, address, gpu)


def gather(brought: Brought) -> Facts:
    """The facts of the cluster that is connected."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    examiner = ray.remote(_Examiner)
    actors = {
        node["NodeID"]: examiner.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in alive
    }
    facts, silent = [], {}
    try:
        for node in alive:
            try:
                facts.append(_examine(actors[node["NodeID"]], node, brought.probes))
            except (ray.exceptions.RayError, TimeoutError) as error:
                silent[node["NodeManagerHostname"]] = _line(error)
    finally:
        for actor in actors.values():
            ray.kill(actor)
    state_api, orphans = _placement_groups()
    reduced, bandwidth = _all_reduce(
        [node["Resources"] for node in alive], brought.need.shape, brought.reduce
    )
    return Facts(
        versions=own_versions(),
        nodes=tuple(facts),
        silent=silent,
        state_api=state_api,
        orphans=orphans,
        all_reduce=reduced,
        gigabytes_per_s=bandwidth,
        tracking=None
        if brought.tracking is None
        else Found(ok=brought.tracking[0], said=brought.tracking[1]),
        need=brought.need,
    )


def _examine(actor: Any, node: Mapping[str, Any], probes: Mapping[str, Probe]) -> NodeFacts:
    own = ray.get(actor.facts.remote(), timeout=_PATIENCE_S)
    found = {
        name: ray.get(actor.probe.remote(probe), timeout=_PROBE_PATIENCE_S) for name, probe in probes.items()
    }
    tries = []
    for _ in range(_CLOCK_TRIES):
        began = time.time()
        theirs = ray.get(actor.now.remote(), timeout=_PATIENCE_S)
        ended = time.time()
        tries.append(((ended - began) / 2, theirs - (began + ended) / 2))
    error, skew = min(tries)
    return NodeFacts(
        **own,
        skew_s=skew,
        skew_error_s=error,
        gpus_promised=node["Resources"].get("GPU", 0.0),
        probes=found,
    )


def own_versions() -> dict[str, str]:
    """Versions of what has to be the same on all nodes."""
    found = {"ray": ray.__version__, "python": platform.python_version()}
    with suppress(PackageNotFoundError):
        found["thaw"] = version("thaw")
    return found


def _placement_groups() -> tuple[Found, tuple[str, ...]]:
    """Whether the State API answers, and the placement groups of jobs that have ended."""
    from ray.util.state import list_placement_groups

    ours = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
    try:
        groups = list_placement_groups(address=ours, detail=True, limit=10_000, raise_on_missing_output=False)
    except Exception as error:  # whatever its HTTP client raises
        return Found(ok=False, said=_line(error)), ()
    ended = {job["JobID"] for job in ray._private.state.jobs() if job["IsDead"]}
    orphans = [
        group.placement_group_id
        for group in groups
        if group.state != "REMOVED" and not group.is_detached and group.creator_job_id in ended
    ]
    held = sum(group.state != "REMOVED" for group in groups)
    return Found(ok=True, said=f"answers; {held} placement groups"), tuple(orphans)


def _all_reduce(
    nodes: list[Mapping[str, float]], shape: GangShape | None, reduce: Reduce
) -> tuple[Found, float | None]:
    """An all-reduce among the workers of a gang; two workers where no sweep says how many."""
    shape = shape or GangShape(workers=2, cpus_per_worker=1, gpus_per_worker=0)
    gpu = shape.gpus_per_worker > 0
    if shape.workers < 2:
        return Found(ok=True, said="a trial has one worker"), None
    if not gangs_that_fit(nodes, shape):
        return Found(ok=True, said=f"no room for {shape.describe()}"), None
    bundle = {"CPU": float(shape.cpus_per_worker), **({"GPU": shape.gpus_per_worker} if gpu else {})}
    group = placement_group([bundle] * shape.workers, strategy="SPREAD")
    try:
        if not group.wait(_GANG_PATIENCE_S):
            return Found(ok=True, said="all gangs are at work, so none is free to try"), None
        ranks = [
            ray.remote(_Examiner)
            .options(
                num_cpus=shape.cpus_per_worker,
                num_gpus=shape.gpus_per_worker,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=index
                ),
            )
            .remote()
            for index in range(shape.workers)
        ]
        address = ray.get(ranks[0].address.remote(), timeout=_PATIENCE_S)
        told = ray.get(
            [
                actor.reduce.remote(reduce, rank, shape.workers, address, gpu)
                for rank, actor in enumerate(ranks)
            ],
            timeout=_PROBE_PATIENCE_S,
        )
    except Exception as error:  # of Ray, of torch, of NCCL
        return Found(ok=False, said=f"{shape.workers} workers: {_line(error)}"), None
    finally:
        remove_placement_group(group)
    backend, bandwidth = told[0]
    said = f"{backend}, {shape.workers} workers: {bandwidth:.2f} GB/s"
    return Found(ok=True, said=said), bandwidth


def _line(error: BaseException) -> str:
    """The last line of what an error says, which has the cause where Ray wraps it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
