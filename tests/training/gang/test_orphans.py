"""Which placement groups have lost their maker."""

from __future__ import annotations

import pytest
from ray.core.generated import gcs_pb2

from training.gang.orphans import orphaned

OURS, ACTOR, NOBODY = b"\4\0\0\0", b"\1" * 16, b"\xff" * 16
CREATED = gcs_pb2.PlacementGroupTableData.CREATED
REMOVED = gcs_pb2.PlacementGroupTableData.REMOVED


@pytest.mark.parametrize(
    ("actor", "dead", "job", "state", "expected"),
    [
        (ACTOR, True, OURS, CREATED, True),
        (ACTOR, False, OURS, CREATED, False),
        (NOBODY, True, OURS, CREATED, False),  # a driver's: Tune's own
        (ACTOR, True, b"\5\0\0\0", CREATED, False),  # another sweep's
        (ACTOR, True, OURS, REMOVED, False),
    ],
)
def test_only_groups_of_this_job_whose_actor_died(
    actor: bytes, dead: bool, job: bytes, state: int, expected: bool
) -> None:
    group = gcs_pb2.PlacementGroupTableData(
        creator_actor_id=actor, creator_actor_dead=dead, creator_job_id=job, state=state
    )
    assert orphaned(group, OURS) is expected
