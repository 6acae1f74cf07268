"""How many gangs fit: pure arithmetic over the resources of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GangShape:
    """What one gang asks for."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    fewest_workers: int | None = None
    """With how many it goes on where there are no more; with all of them where unset."""

    def describe(self) -> str:
        """For messages: `2 workers with 4 CPUs and 1 GPU each`."""
        parts = [_count(self.cpus_per_worker, "CPU")]
        if self.gpus_per_worker:
            parts.append(_count(self.gpus_per_worker, "GPU"))
        return f"{_count(self.workers, 'worker')} with {' and '.join(parts)}{' each' * (self.workers > 1)}"


def workers_on(node: Mapping[str, float], shape: GangShape) -> int:
    """Workers that fit on a node with these resources (`CPU`, `GPU`, as Ray names them)."""
    by_cpu = int(node.get("CPU", 0.0) / shape.cpus_per_worker + 1e-6)
    if not shape.gpus_per_worker:
        return by_cpu
    return min(by_cpu, shares(node.get("GPU", 0.0), shape.gpus_per_worker))


def shares(gpus: float, each: float) -> int:
    """Workers that a node's GPUs give `each` to: a fraction is of one of them, and cannot lie on two."""
    if each >= 1:
        return int(gpus / each + 1e-6)
    whole = int(gpus + 1e-6)
    return whole * int(1 / each + 1e-6) + int(max(0.0, gpus - whole) / each + 1e-6)


def gangs_that_fit(nodes: Sequence[Mapping[str, float]], shape: GangShape) -> int:
    """Gangs that run at once on `nodes`. A gang may span nodes, a worker may not."""
    return sum(workers_on(node, shape) for node in nodes) // shape.workers


def require_fit(nodes: Sequence[Mapping[str, float]], shape: GangShape) -> int:
    """`gangs_that_fit`, where that is at least one; one, where it fits with fewer workers alone.

    Raises:
        ValueError: if not even one gang fits.
    """
    fit = gangs_that_fit(nodes, shape)
    if fit == 0 and shape.fewest_workers is not None:
        fit = int(sum(workers_on(node, shape) for node in nodes) >= shape.fewest_workers)
    if fit:
        return fit
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    room = sum(workers_on(node, shape) for node in nodes)
    fix = f"set resources.workers to at most {room}" if room else "ask for less per worker, or add nodes"
    raise ValueError(
        f"resources: a trial needs {shape.describe()}, and the cluster has {_count(cpus, 'CPU')} and "
        f"{_count(gpus, 'GPU')} on {_count(len(nodes), 'node')}; {fix}"
    )


def attainable(
    nodes: Sequence[tuple[str, Mapping[str, float]]], groups: Mapping[str, tuple[Mapping[str, float], int]]
) -> list[Mapping[str, float]]:
    """The nodes that a cluster could have: those that stay, and all that its autoscaler may start.

    Args:
        nodes: those that stand now: kind, or "" where it is not known, and resources.
        groups: the autoscaler's kinds of nodes: resources of one, and how many there may be.
    """
    stay = [resources for kind, resources in nodes if kind not in groups or groups[kind][1] == 0]
    come = [
        resources
        for kind, (resources, most) in groups.items()
        for _ in range(max(most, sum(there == kind for there, _ in nodes)))
        if most > 0
    ]
    return [*stay, *come]


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
