"""What holds a Ray cluster's resources, and what its processes do: for tests that find it busy or hang."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sysconfig
from pathlib import Path

import ray
from ray.core.generated import gcs_pb2

_DUMP_S = 20.0


def is_free() -> bool:
    """Whether nothing holds a CPU of the connected cluster."""
    return ray.available_resources().get("CPU", 0.0) == ray.cluster_resources().get("CPU", 0.0)


def holders() -> list[str]:
    """What may hold resources: placement groups with their makers, nodes in use, live actors."""
    state = ray._private.state.state
    accessor = state._connect_and_get_accessor()
    actors = {}
    for raw in accessor.get_actor_table(None, None):
        actor = gcs_pb2.ActorTableData.FromString(raw)
        status = gcs_pb2.ActorTableData.ActorState.Name(actor.state)
        actors[actor.actor_id] = f"{actor.class_name} ({status}, pid {actor.pid})"
    found = []
    for raw in accessor.get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(raw)
        status = gcs_pb2.PlacementGroupTableData.PlacementGroupState.Name(group.state)
        if status != "REMOVED":
            found.append(
                f"placement group {group.placement_group_id.hex()} {status} of job "
                f"{group.creator_job_id.hex()} (dead: {group.creator_job_dead}), made by "
                f"{actors.get(group.creator_actor_id, 'a driver')} (dead: {group.creator_actor_dead}): "
                f"{[dict(bundle.unit_resources) for bundle in group.bundles]}"
            )
    free = state.available_resources_per_node()
    for node in ray.nodes():
        total, left = node["Resources"].get("CPU", 0.0), free.get(node["NodeID"], {}).get("CPU", 0.0)
        if node["Alive"] and left < total:
            found.append(f"node {node['NodeID']}: {left:g} of {total:g} CPUs free")
    return found + [f"alive: {actor}" for actor in actors.values() if "(ALIVE" in actor]


def stacks() -> str:
    """What the processes of Ray's actors on this machine do just now, by py-spy, which Ray brings along."""
    spy = shutil.which("py-spy", path=sysconfig.get_path("scripts"))
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if spy and line.startswith(b"ray::") and b"Agent" not in line:
                dump = [spy, "dump", "--nonblocking", "--pid", entry.name]
                found.append(subprocess.run(dump, capture_output=True, text=True, timeout=_DUMP_S).stdout)
    return "\n".join(found)
