"""What a killed driver leaves on a cluster."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import pytest
import ray
from ray.core.generated import gcs_pb2

from tests.holders import is_free
from tests.processes import wait_for
from training.gang.orphans import held_by_actor, reap

_RAY_S = 2.0
"""What Ray knows to be an orphan it has freed by then."""

# Its actor asks for room when the driver is killed, as a gang that starts may.
DRIVER = """
import os, signal, sys, time
import ray
from ray.util.placement_group import placement_group

@ray.remote(num_cpus=0)
class Controller:
    def begin(self):
        while True:
            placement_group([{"CPU": 1}])

ray.init(address=sys.argv[1], log_to_driver=False)
controller = Controller.remote()
ray.get(controller.__ray_ready__.remote())
controller.begin.remote()
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def held() -> int:
    accessor = ray._private.state.state._connect_and_get_accessor()
    groups = map(gcs_pb2.PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    return sum(map(held_by_actor, groups))


@pytest.mark.slow
def test_what_a_killed_driver_s_gangs_asked_for_too_late_is_freed_by_the_next_driver(
    idle_nodes: Sequence[Mapping[str, float]],
) -> None:
    address = ray.get_runtime_context().gcs_address
    for _ in range(20):
        killed = subprocess.run([sys.executable, "-c", DRIVER, address], capture_output=True, check=False)
        assert killed.returncode == -9, killed.stderr
        time.sleep(_RAY_S)
        if held():
            break
    assert held()
    reap()
    assert not held()
    wait_for(is_free, 30, "their room")
