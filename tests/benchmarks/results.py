"""What benches have in common at their ends: the machine that they ran on, and how figures are told."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def machine(*, gpu: bool = False) -> dict[str, Any]:
    """What a bench runs on, and how busy that is as yet.

    Args:
        gpu: name the GPU too.
    """
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    memory = Path("/proc/meminfo").read_text().splitlines()
    found: dict[str, Any] = {
        "cpu": next((line.partition(": ")[2] for line in cpus if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(next(int(line.split()[1]) for line in memory if "MemTotal" in line) / 1e6, 1),
        "load": list(os.getloadavg()),
    }
    if gpu:
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def tell(found: Mapping[str, Any], out: Path | None, table: str | None = None) -> None:
    """Write the figures to a file where one was asked for; print them, and then the table."""
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
    if table is None:
        print(json.dumps(found, indent=1))
    else:
        print(json.dumps(found))
        print(table)
