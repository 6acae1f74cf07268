"""What a sweep asks of a cluster, and how many nodes of a kind that is. Pure arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.capacity import GangShape, workers_on
from cluster.provision.spec import ClusterSpec, Workers


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A sweep as a cluster sees it."""

    name: str
    """The sweep's name."""
    file: str
    """The sweep's file, as text; it holds no secrets."""
    shape: GangShape
    """What one of its gangs asks for."""
    gangs: int
    """How many gangs it can use at once."""
    local_files: tuple[str, ...] = ()
    """Files of this machine that it reads, and that nodes must have too."""


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """A kind of node, and how many of it a sweep can use."""

    name: str
    node: Workers
    max_nodes: int


def node_groups(workload: Workload, spec: ClusterSpec) -> list[NodeGroup]:
    """The kinds of nodes that can hold a worker of the sweep, each up to what the sweep can use.

    Raises:
        ValueError: if no kind of node can hold a worker, or all nodes together cannot hold a gang.
    """
    shape = workload.shape
    wanted = workload.gangs * shape.workers
    groups = []
    held = 0
    for index, node in enumerate(spec.workers):
        a_node = workers_on({"CPU": node.cpus, "GPU": node.gpus}, shape)
        if a_node == 0:
            continue
        most = math.ceil(wanted / a_node)
        most = most if node.max is None else min(most, node.max)
        held += most * a_node
        groups.append(NodeGroup(name=f"workers-{index}", node=node, max_nodes=most))
    if not groups:
        raise ValueError(
            f"resources: a trial needs {shape.describe()}, and no node of cluster.workers can hold a worker "
            f"({_kinds(spec.workers)}); ask for less per worker, or add a larger kind of node"
        )
    if held < shape.workers:
        raise ValueError(
            f"resources: a trial needs {shape.describe()}, and cluster.workers allows nodes for {held}; "
            f"raise cluster.workers[].max, or set resources.workers to at most {held}"
        )
    return groups


def node_types(groups: Sequence[NodeGroup]) -> str:
    """For the head's environment: what `cluster.connect.possible_nodes` reads."""
    kinds = [
        {"name": group.name, "CPU": group.node.cpus, "GPU": group.node.gpus, "max": group.max_nodes}
        for group in groups
    ]
    return json.dumps(kinds, separators=(",", ":"))


def _kinds(nodes: Sequence[Workers]) -> str:
    return "; ".join(f"{node.type or 'a node'} with {node.cpus} CPUs and {node.gpus} GPUs" for node in nodes)
