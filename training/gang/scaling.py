"""How many workers a gang has: what it asks for, what fits after a loss, and when it grows again.

Ray Train's own policies ask its autoscaling coordinator for nodes, which keeps them for minutes after the
one who asked has died. A gang's demand is its placement group alone, which goes when its owner goes.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)

Resources = Mapping[str, float]
_CALL_S = 1.0


def room(nodes: Sequence[Resources], worker: Resources) -> int:
    """Workers that fit on what is free on `nodes`."""
    return sum(
        min(int(node.get(name, 0.0) / amount + 1e-6) for name, amount in worker.items() if amount)
        for node in nodes
    )


def group_size(fits: int, minimum: int, maximum: int) -> int:
    """Workers of the next group: as many as fit; where too few do, the fewest that are waited for."""
    return max(minimum, min(fits, maximum))


def draining() -> set[str]:
    """Ids of the nodes that are about to be taken away."""
    return set(ray._private.state.state.get_draining_nodes())


def unreachable() -> set[str]:
    """Ids of the nodes that are gone, though Ray counts them for some seconds more.

    A gang that asked for their room would wait for a minute, until Ray Train gives up on it.
    """
    gone = set()
    for node in ray.nodes():
        if node["Alive"]:
            try:
                socket.create_connection(
                    (node["NodeManagerAddress"], node["NodeManagerPort"]), _CALL_S
                ).close()
            except OSError:
                gone.add(node["NodeID"])
    return gone


def free_nodes(held: Mapping[str, int], worker: Resources) -> list[Resources]:
    """What a gang could have on each node that lives: what is free there, and what it holds itself."""
    free = ray._private.state.available_resources_per_node()
    going = draining() | unreachable()
    return [
        {name: amount + held.get(node, 0) * worker.get(name, 0.0) for name, amount in resources.items()}
        | {
            name: held[node] * amount
            for name, amount in worker.items()
            if node in held and name not in resources
        }
        for node, resources in free.items()
        if node not in going
    ]


class GangScaling(ScalingPolicy):
    """As many workers as fit between two bounds, decided whenever a worker group starts."""

    def __init__(self, scaling_config: Any, minimum: int, maximum: int) -> None:
        super().__init__(scaling_config)
        self._minimum, self._maximum = minimum, maximum
        self._held: Counter[str] = Counter()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """A size for the next group."""
        size = self._maximum
        worker = self.scaling_config._resources_per_worker_not_none
        if self._minimum < self._maximum:
            size = group_size(room(free_nodes(self._held, worker), worker), self._minimum, self._maximum)
        self._held.clear()
        return ResizeDecision(num_workers=size, resources_per_worker=worker)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Nothing: a group that runs is only left by its owner, where no work is lost."""
        if not self._held:
            self._held.update(worker.metadata.node_id for worker in worker_group_state.workers)
        return NoopDecision()

    def _get_num_workers_for_resource_request(self) -> int:
        return self._maximum

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nothing is asked of the coordinator."""

    async def before_controller_shutdown(self) -> None:
        """Nothing was asked."""

    def before_controller_abort(self) -> None:
        """Nothing was asked."""
