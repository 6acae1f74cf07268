"""How many gangs fit: pure arithmetic over the resources of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GangShape:
    """What one gang asks for."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float

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
    return min(by_cpu, int(node.get("GPU", 0.0) / shape.gpus_per_worker + 1e-6))


def gangs_that_fit(nodes: Sequence[Mapping[str, float]], shape: GangShape) -> int:
    """Gangs that run at once on `nodes`. A gang may span nodes, a worker may not."""
    return sum(workers_on(node, shape) for node in nodes) // shape.workers


def require_fit(nodes: Sequence[Mapping[str, float]], shape: GangShape) -> int:
    """`gangs_that_fit`, where that is at least one.

    Raises:
        ValueError: if not even one gang fits.
    """
    fit = gangs_that_fit(nodes, shape)
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


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
