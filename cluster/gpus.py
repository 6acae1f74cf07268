"""How much memory GPUs have, as `nvidia-smi` says."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

_MEBIBYTE = 2**20
_PATIENCE_S = 60.0


def smallest_here() -> int | None:
    """Bytes of this machine's smallest GPU; None where it has none, or does not say."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return smallest(done.stdout)
    return None


def smallest(text: str) -> int | None:
    """Bytes of the least of the lines of `nvidia-smi`, which are MiB; what is no number does not count."""
    found = [int(line) for line in text.split() if line.isdigit()]
    return min(found) * _MEBIBYTE if found else None


def smallest_in_cluster() -> int | None:
    """Bytes of the smallest GPU of the connected Ray cluster; None where none stands, or none says."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked: list[Any] = [
        ray.remote(smallest_here)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0.0) > 0
    ]
    if not asked:
        return None
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_PATIENCE_S)
    said = []
    for answer in answered:
        with contextlib.suppress(ray.exceptions.RayError):  # a node that goes meanwhile
            said.append(ray.get(answer))
    return min((size for size in said if size is not None), default=None)
