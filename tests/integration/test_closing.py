"""A gang that is closed before its workers have started: they come, find nobody, and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import ray

from tests.holders import is_free
from tests.processes import wait_for
from training.gang import Gang, GangConfig


@pytest.mark.slow
def test_a_gang_that_is_closed_at_once_gives_its_room_back(
    idle_nodes: Sequence[Mapping[str, float]], tmp_path: Path
) -> None:
    free = ray.available_resources()["CPU"]
    gang = Gang(GangConfig(workers=2, cpus_per_worker=1, gpus_per_worker=0, storage=str(tmp_path / "ray")))
    gang.close()
    wait_for(lambda: ray.available_resources().get("CPU", 0) == free - 2, 60, "its workers")
    gang._run.join(120)
    assert not gang._run.is_alive()
    wait_for(is_free, 60, "their room")
