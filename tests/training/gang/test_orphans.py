"""Which placement groups have lost their maker."""

from __future__ import annotations

import pytest
from ray.core.generated import gcs_pb2

from training.gang.orphans import held_by_actor, orphaned

OURS, LIVING, DEAD, ACTOR, NOBODY = b"\4\0\0\0", b"\5\0\0\0", b"\3\0\0\0", b"\1" * 16, b"\xff" * 16
Group, Actor = gcs_pb2.PlacementGroupTableData, gcs_pb2.ActorTableData


@pytest.mark.parametrize(
    ("actor", "state", "detached", "expected"),
    [
        (ACTOR, Group.CREATED, False, True),
        (ACTOR, Group.PENDING, False, True),
        (NOBODY, Group.CREATED, False, False),  # a driver's: Tune's own
        (ACTOR, Group.REMOVED, False, False),
        (ACTOR, Group.CREATED, True, False),  # meant to stay
    ],
)
def test_only_groups_of_actors_that_are_to_go_with_them(
    actor: bytes, state: int, detached: bool, expected: bool
) -> None:
    assert held_by_actor(Group(creator_actor_id=actor, state=state, is_detached=detached)) is expected


@pytest.mark.parametrize(
    ("job", "known", "maker", "expected"),
    [
        (OURS, True, None, True),
        (OURS, True, Actor(state=Actor.ALIVE), True),  # one table is ahead of the other
        (OURS, False, Actor(state=Actor.DEAD), True),  # it died while its request was on the way
        (OURS, False, Actor(state=Actor.ALIVE), False),
        (OURS, False, Actor(state=Actor.RESTARTING), False),
        (OURS, False, None, False),
        (LIVING, False, Actor(state=Actor.DEAD), False),  # another sweep's, whose driver frees it
        (DEAD, False, Actor(state=Actor.DEAD), True),
        (DEAD, False, None, True),  # forgotten since
        (DEAD, False, Actor(state=Actor.ALIVE), False),  # detached: it outlives its job
    ],
)
def test_a_group_is_an_orphan_when_its_maker_is_dead(
    job: bytes, known: bool, maker: gcs_pb2.ActorTableData | None, expected: bool
) -> None:
    group = Group(creator_job_id=job, creator_actor_dead=known)
    assert orphaned(group, maker, job=OURS, dead={DEAD}) is expected
