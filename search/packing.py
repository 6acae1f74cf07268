"""How many trials share a GPU: `resources.gpus_per_worker`, and what `auto` makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search import memory
from search.config import ResourcesConfig
from search.memory import Row, megabytes
from search.spec import SweepSpec
from training.memory import CONTEXT_BYTES

MOST = 8
"""Trials on one GPU, for `auto`: more of them take turns at it."""
_MARGIN = 1.25
# Ray counts in ten-thousandths, so a third is a little less than that.
_GRAIN = 10_000


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a sweep's trials lie on GPUs."""

    gpus_per_worker: float
    reason: str
    """Why so, in one line; empty where the sweep's file says it."""

    @property
    def a_gpu(self) -> int:
        """Trials that one GPU holds; 0 where one takes more than that, or none."""
        share = self.gpus_per_worker
        return int(1 / share + 1e-6) if 0 < share <= 1 else 0


def packing(resources: ResourcesConfig, rows: Sequence[Row], gpu_bytes: int | None) -> Packing:
    """How the trials lie on GPUs. Pure.

    Args:
        rows: what each phase that the sweep can draw needs; see `search.memory.rows`.
        gpu_bytes: memory of the smallest GPU; None where it is not known.
    """
    asked = resources.gpus_per_worker
    if asked != "auto":
        return Packing(gpus_per_worker=asked, reason="")
    if resources.most_workers > 1:
        return Packing(gpus_per_worker=1.0, reason="the workers of one trial cannot share a GPU")
    if gpu_bytes is None:
        return Packing(gpus_per_worker=1.0, reason="there is no GPU yet whose memory could be looked at")
    largest = max(rows, key=lambda row: row.memory.device)
    # Never so many that torch had less than half of a share, see `fraction`.
    each = CONTEXT_BYTES + max(_MARGIN * largest.memory.device, CONTEXT_BYTES)
    count = max(1, min(MOST, int(gpu_bytes / each)))
    return Packing(
        gpus_per_worker=math.floor(_GRAIN / count) / _GRAIN,
        reason=f"schedule {largest.schedule}, phase {largest.phase} needs "
        f"{megabytes(largest.memory.device)} MB, and a GPU has {megabytes(gpu_bytes)} MB",
    )


def decided(spec: SweepSpec, gpu_bytes: Callable[[], int | None]) -> float:
    """GPUs that each worker of the sweep gets.

    Args:
        gpu_bytes: finds out the memory of the smallest GPU; called for `auto` alone.
    """
    asked = spec.resources.gpus_per_worker
    if asked != "auto":
        return asked
    return packing(spec.resources, memory.rows(spec), gpu_bytes()).gpus_per_worker
