"""What goes into the store, where, and what has to go for it: pure decisions, and what they are made on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.config import PrefixStoreConfig

Shelf = Literal["memory", "disk"]

_HALF_LIFE_S = 3600.0
_SHARE = {"memory": 0.25, "disk": 0.1}
"""Of what is free: the rest is for training, and for others."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """An entry of the store."""

    key: str
    size: int
    """Bytes."""
    seconds: float
    """What it took to compute."""
    idle_s: float
    """Since it was last opened."""
    in_use: bool = False

    @property
    def value(self) -> float:
        """Seconds that a byte saves, half as much for each hour that nobody asked for it."""
        return self.seconds / max(self.size, 1) * 0.5 ** (self.idle_s / _HALF_LIFE_S)


def victims(held: Sequence[Held], *, excess: int, value: float) -> list[str] | None:
    """Keys of the entries to evict, the least valuable first, to free `excess` bytes.

    None where that takes one that is in use or worth more than the newcomer, of this `value`.
    """
    gone: list[str] = []
    for entry in sorted(held, key=lambda entry: entry.value):
        if excess <= 0:
            break
        if entry.in_use or entry.value > value:
            continue
        gone.append(entry.key)
        excess -= entry.size
    return gone if excess <= 0 else None


@dataclass(frozen=True, kw_only=True)
class Room:
    """One shelf as a newcomer finds it."""

    shelf: Shelf
    budget: int
    """Bytes that the store may take there."""
    used: int
    """Bytes that it takes there now."""
    held: tuple[Held, ...]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where an entry goes, and what goes for it."""

    shelf: Shelf
    evicted: tuple[str, ...]


def place(
    rooms: Sequence[Room], *, size: int, seconds: float, read_seconds_per_byte: float | None
) -> Placement | None:
    """Where an entry of `size` bytes that takes `seconds` to compute is stored; None to recompute it.

    Memory always wins over computing. A disk does where it reads a byte faster than it is computed.

    Args:
        read_seconds_per_byte: of the disk, as measured; None where it was not.
    """
    value = seconds / max(size, 1)
    for room in rooms:
        if room.shelf == "disk" and (read_seconds_per_byte is None or read_seconds_per_byte >= value):
            continue
        if size > room.budget:
            continue
        gone = victims(room.held, excess=room.used + size - room.budget, value=value)
        if gone is not None:
            return Placement(shelf=room.shelf, evicted=tuple(gone))
    return None


def budget(config: PrefixStoreConfig, shelf: Shelf, directory: Path, used: int) -> int:
    """Bytes that the store may take on a shelf: as set, or a share of what is free without it."""
    wanted = config.memory if shelf == "memory" else config.disk
    if wanted != "auto":
        return int(wanted * 1e9)
    free = _free(directory)
    if shelf == "memory":
        free = min(free, _available_memory())
    return int(_SHARE[shelf] * (free + used))


def _free(directory: Path) -> int:
    """Bytes free on the file system of a directory, or of where it would be."""
    there = next(place for place in (directory, *directory.parents) if place.exists())
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize


def _available_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this machine, or the container on it, can still give.

    What a container has read of files counts as taken, up to its limit, and is given up for anything else.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        limit = (group / "memory.max").read_text().strip()
        taken = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        taken -= next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError):
        return available
    return available if limit == "max" else max(0, min(available, int(limit) - taken))
