"""Placement groups whose maker is dead: Ray frees them only when the whole job ends, or by its dashboard.

One that was asked for just before its maker died, Ray's own bookkeeping misses: `creator_actor_dead` stays
unset for good, so the maker itself is looked up. Where it was the job that died (a driver that was killed),
`creator_job_dead` stays unset as well, and the group holds its room as long as the cluster stands: every
driver frees those too, whoever left them, for nobody else will.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ray
from ray import ActorID, PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

_REMOVED = gcs_pb2.PlacementGroupTableData.REMOVED
_DEAD = gcs_pb2.ActorTableData.DEAD


def held_by_actor(group: Any) -> bool:
    """Whether a group is there that was made by an actor (a driver's own have none) and is to go with it."""
    by_actor = set(group.creator_actor_id) != {0xFF}
    return bool(by_actor and not group.is_detached and group.state != _REMOVED)


def orphaned(group: Any, maker: Any, *, job: bytes, dead: Collection[bytes]) -> bool:
    """Whether the actor that made a group is dead, and the group this job's to free.

    Args:
        maker: what Ray's table of actors says of it; None where it is not there.
        job: this one.
        dead: the jobs that have ended.
    """
    if group.creator_job_id in dead:
        return maker is None or maker.state == _DEAD
    if group.creator_job_id != job:
        return False
    return bool(group.creator_actor_dead or (maker is not None and maker.state == _DEAD))


def reap() -> None:
    """Free what gangs of this job hold whose owner died: its controller, who made the group, died with it.

    And what is left of jobs that have ended.
    """
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    accessor = ray._private.state.state._connect_and_get_accessor()
    groups = map(gcs_pb2.PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    held = [group for group in groups if held_by_actor(group)]
    dead: set[bytes] = set()
    if any(group.creator_job_id != job for group in held):
        jobs = map(gcs_pb2.JobTableData.FromString, accessor.get_job_table())
        dead = {other.job_id for other in jobs if other.is_dead}
    for group in held:
        if group.creator_job_id == job or group.creator_job_id in dead:
            found = accessor.get_actor_info(ActorID(group.creator_actor_id))
            maker = gcs_pb2.ActorTableData.FromString(found) if found else None
            if orphaned(group, maker, job=job, dead=dead):
                remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
