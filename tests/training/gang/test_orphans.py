"""Which placement groups have lost their maker."""

from __future__ import annotations

import pytest
from ray.core.generated import gcs_pb2

from training.gang.orphans import held_by_actor, orphaned

OURS, ACTOR, NOBODY = b"\4\0\0\0", b"\1" * 16, b"\xff" * 16
Group, Actor = gcs_pb2.PlacementGroupTableData, gcs_pb2.ActorTableData


@pytest.mark.parametrize(
    ("actor", "job", "state", "expected"),
    [
        (ACTOR, OURS, Group.CREATED, True),
        (ACTOR, OURS, Group.PENDING, True),
        (NOBODY, OURS, Group.CREATED, False),  # a driver's: Tune's own
        (ACTOR, b"\5\0\0\0", Group.CREATED, False),  # another sweep's
        (ACTOR, OURS, Group.REMOVED, False),
    ],
)
def test_only_groups_of_this_job_s_actors(actor: bytes, job: bytes, state: int, expected: bool) -> None:
    group = Group(creator_actor_id=actor, creator_job_id=job, state=state)
    assert held_by_actor(group, OURS) is expected


@pytest.mark.parametrize(
    ("known", "maker", "expected"),
    [
        (True, None, True),
        (True, Actor(state=Actor.ALIVE), True),  # one table is ahead of the other
        (False, Actor(state=Actor.DEAD), True),  # it died while its request was on the way
        (False, Actor(state=Actor.ALIVE), False),
        (False, Actor(state=Actor.RESTARTING), False),
        (False, None, False),
    ],
)
def test_a_group_is_an_orphan_when_its_maker_is_dead(
    known: bool, maker: gcs_pb2.ActorTableData | None, expected: bool
) -> None:
    assert orphaned(Group(creator_actor_dead=known), maker) is expected
