"""Placement groups whose maker is dead: Ray frees them only when the whole job ends, or by its dashboard.

One that was asked for just before its maker died, Ray's own bookkeeping misses: `creator_actor_dead` stays
unset for good, so the maker itself is looked up.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import ActorID, PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

_REMOVED = gcs_pb2.PlacementGroupTableData.REMOVED
_DEAD = gcs_pb2.ActorTableData.DEAD


def held_by_actor(group: Any, job: bytes) -> bool:
    """Whether a group was made by an actor of the job, and is there. (A driver's own have no actor.)"""
    by_actor = set(group.creator_actor_id) != {0xFF}
    return bool(by_actor and group.creator_job_id == job and group.state != _REMOVED)


def orphaned(group: Any, maker: Any) -> bool:
    """Whether the actor that made a group is dead.

    Args:
        maker: what Ray's table of actors says of it; None where it is not there.
    """
    return bool(group.creator_actor_dead or (maker is not None and maker.state == _DEAD))


def reap() -> None:
    """Free what gangs of this job hold whose owner died: its controller, who made the group, died with it."""
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    accessor = ray._private.state.state._connect_and_get_accessor()
    for raw in accessor.get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(raw)
        if held_by_actor(group, job):
            found = accessor.get_actor_info(ActorID(group.creator_actor_id))
            if orphaned(group, found and gcs_pb2.ActorTableData.FromString(found)):
                remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
