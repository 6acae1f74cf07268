"""GPUs and their memory, as `nvidia-smi` says."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_MEBIBYTE = 2**20
_PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, as its driver sees it; 0 bytes where it does not say."""

    name: str
    used_bytes: int
    total_bytes: int


def here() -> tuple[Gpu, ...]:
    """This machine's GPUs; none where there is no driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return read(told.stdout)


def read(text: str) -> tuple[Gpu, ...]:
    """The lines of `nvidia-smi`: name, and MiB that are used and that there are."""
    rows = [line.rsplit(",", 2) for line in text.splitlines() if line.count(",") >= 2]
    return tuple(
        Gpu(name=name.strip(), used_bytes=_bytes(used), total_bytes=_bytes(total))
        for name, used, total in rows
    )


def smallest(gpus: Iterable[Gpu]) -> int | None:
    """Bytes of the smallest GPU; None where there is none, or none says."""
    return min((gpu.total_bytes for gpu in gpus if gpu.total_bytes), default=None)


def smallest_here() -> int | None:
    """Bytes of this machine's smallest GPU; None where it has none, or does not say."""
    return smallest(here())


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


def _bytes(mebibytes: str) -> int:
    return int(mebibytes) * _MEBIBYTE if mebibytes.strip().isdigit() else 0
