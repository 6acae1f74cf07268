"""The store of a node: what is frozen is computed once, and read by every trial and gang there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.batches import tokens_of
from training.config import PrefixStoreConfig
from training.prefix import entries
from training.prefix.budget import Placement, Room, Shelf, budget, place
from training.prefix.compute import Probe, Recipe
from training.prefix.entries import Draft, Entry, Shape

_SAMPLE_BYTES, _READ_BYTES = 2**23, 2**16
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class Shelves:
    """Where the entries of a node lie, in memory and on its disk."""

    config: PrefixStoreConfig
    roots: dict[Shelf, Path]
    home: Path
    """Where the locks are: the same for all, whatever `config` allows them."""

    def find(self, key: str, shape: Shape) -> Entry | None:
        """The entry called `key`, open, if there is one."""
        for root in self.roots.values():
            entry = entries.open_entry(root, key, shape)
            if entry is not None:
                return entry
        return None

    def obtain(
        self,
        described: dict[str, Any],
        shape: Shape,
        probed: Callable[[], Probe],
        recipe: Callable[[], Recipe],
    ) -> Entry | None:
        """The entry for what is `described`; made where it is missing, by one process alone.

        Args:
            probed: what a probe of computing it found; called where it is missing.
            recipe: how it is computed; called once there is room for it.

        Returns:
            The entry, open; None where there is no room for it, or computing is faster than reading.
        """
        key = key_of(described)
        if not self.roots:
            return None
        entry = self.find(key, shape)
        if entry is not None:
            return entry
        with entries.locked(self.home, key):
            entry = self.find(key, shape)  # another process may have made it meanwhile
            if entry is not None:
                return entry
            for root in self.roots.values():
                entries.sweep(root, key)
            found = probed()
            seconds = found.seconds_per_token * shape.tokens
            draft = self._reserve(key, shape, seconds)
            if draft is None:
                return None
            try:
                _fill(draft, recipe())
                final = draft.commit(seconds=seconds, rows=found.rows, described=described)
            except OSError:  # a disk that fails, who cleans up, or another machine that shares the disk
                draft.discard()
                return self.find(key, shape)
            except BaseException:
                draft.discard()
                raise
            return entries.open_entry(final.parent, key, shape)

    def spare(self, size: int) -> bool:
        """Whether the first shelf takes `size` bytes more without giving up anything."""
        for shelf, root in self.roots.items():
            used = entries.size_of(root)
            return used + size <= budget(self.config, shelf, root, used)
        return False

    def _reserve(self, key: str, shape: Shape, seconds: float) -> Draft | None:
        """Space for a new entry, which is its own from now on; what is evicted for it is gone."""
        with entries.locked(self.home, ""):
            placement = self._place(shape.size, seconds)
            if placement is None:
                return None
            root = self.roots[placement.shelf]
            for victim in placement.evicted:
                if not entries.remove(root, victim):
                    return None
            try:
                return Draft(root, key, shape)
            except (OSError, RuntimeError):
                return None

    def _place(self, size: int, seconds: float) -> Placement | None:
        rooms: list[Room] = []
        for shelf, root in self.roots.items():
            used = entries.size_of(root)
            rooms.append(
                Room(
                    shelf=shelf,
                    budget=budget(self.config, shelf, root, used),
                    used=used,
                    held=tuple(entries.held(root)),
                )
            )
        found = place(rooms, size=size, seconds=seconds, read_seconds_per_byte=None)
        if found is None and "disk" in self.roots:
            speed = _read_seconds_per_byte(self.roots["disk"])
            found = place(rooms, size=size, seconds=seconds, read_seconds_per_byte=speed)
        return found


def shelves(config: PrefixStoreConfig, cache: Path) -> Shelves:
    """The shelves of this machine that `config` allows. What is in memory is its own for each cache."""
    if config.mode == "recompute":
        return Shelves(config=config, roots={}, home=cache)
    places = _usable(cache)
    wanted = {"memory": config.memory, "disk": config.disk}
    roots = {shelf: root for shelf, root in places.items() if wanted[shelf] != 0}
    return Shelves(config=config, roots=roots, home=next(iter(places.values()), cache))


def roots_of(cache: Path) -> dict[Shelf, Path]:
    """Where the store is in memory, where this machine has such a file system, and on disk."""
    places: dict[Shelf, Path] = {"disk": cache / "prefix"}
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
        owner = hashlib.sha256(str(cache.absolute()).encode()).hexdigest()[:8]
        places = {"memory": _MEMORY / f"thaw-{os.getuid()}-{owner}", **places}
    return places


def key_of(described: dict[str, Any]) -> str:
    """The name of the entry for what is described."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def clear(cache: Path) -> tuple[int, int]:
    """Remove what nobody uses of this machine's store. Returns the bytes freed and the bytes left."""
    roots = list(_usable(cache).values())
    return entries.clear(roots, roots[0]) if roots else (0, 0)


def _fill(draft: Draft, recipe: Recipe) -> None:
    split = recipe.split
    for wanted, states in recipe.pieces(np.arange(len(split))):
        at = torch.from_numpy(tokens_of(split.offsets, wanted))
        entries.write(draft.states, at, states)


def _usable(cache: Path) -> dict[Shelf, Path]:
    """Those of `roots_of` that can be written, made where they are missing.

    Where anyone can make a directory, one that somebody else has made is none: whatever lies in the
    store is taken for what was computed.
    """
    found: dict[Shelf, Path] = {}
    for shelf, root in roots_of(cache).items():
        try:
            root.parent.mkdir(parents=True, exist_ok=True)
            public = bool(root.parent.stat().st_mode & stat.S_IWOTH)
            root.mkdir(mode=0o700 if public else 0o777, exist_ok=True)
            status = root.lstat()
        except OSError:
            continue
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        if os.access(root, os.W_OK) and (ours or not public):
            found[shelf] = root
    return found


def _read_seconds_per_byte(root: Path) -> float | None:
    """Time to read a byte from the disk at a random place, in pieces of about an example; measured."""
    try:
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(os.urandom(_SAMPLE_BYTES))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not out of memory
            starts = list(range(0, _SAMPLE_BYTES, _READ_BYTES))
            random.Random(0).shuffle(starts)
            began = time.perf_counter()
            for start in starts:
                os.pread(file.fileno(), _READ_BYTES, start)
            return (time.perf_counter() - began) / _SAMPLE_BYTES
    except OSError:
        return None
