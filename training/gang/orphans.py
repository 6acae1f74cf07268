"""Placement groups whose maker is dead: Ray frees them only when the whole job ends, or by its dashboard."""

from __future__ import annotations

from typing import Any

import ray
from ray import PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group


def orphaned(group: Any, job: bytes) -> bool:
    """Whether a group of the job was made by an actor, which is dead. (A driver's own have no actor.)"""
    by_actor = set(group.creator_actor_id) != {0xFF}
    removed = gcs_pb2.PlacementGroupTableData.REMOVED
    return bool(
        by_actor and group.creator_actor_dead and group.creator_job_id == job and group.state != removed
    )


def reap() -> None:
    """Free what gangs of this job hold whose owner died: its controller, who made the group, died with it."""
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    accessor = ray._private.state.state._connect_and_get_accessor()
    for raw in accessor.get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(raw)
        if orphaned(group, job):
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
