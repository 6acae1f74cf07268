"""Entries of the prefix store: memory-mapped files of states, whole or not there at all.

An entry is a directory, named after everything that its contents depend on: a file of states for
each stack, and a manifest with sizes and checksums, which is written last, before the directory
gets its name. Whoever reads one holds a shared lock on its manifest; whoever removes one, an
exclusive lock. The kernel lets go of a lock when its holder dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from training.prefix.budget import Held
from training.prefix.states import States

_MANIFEST = "manifest.json"
_CHUNK_BYTES = 2**24
_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the states of an entry are."""

    tokens: int
    hidden: int
    stacks: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.stacks * self.stack_size

    @property
    def stack_size(self) -> int:
        """Bytes of the file of one stack."""
        return self.tokens * self.hidden * self.dtype.itemsize

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, one for each stack."""
        return tuple(f"{stack}.bin" for stack in range(self.stacks))

    def mapped(self, path: Path, *, shared: bool) -> States:
        """The files under `path`: [tokens, D] of each stack; to write to them if `shared`."""
        numel = self.tokens * self.hidden
        flats = (
            torch.from_file(str(path / name), shared=shared, size=numel, dtype=self.dtype)
            for name in self.files
        )
        return tuple(flat.view(self.tokens, self.hidden) for flat in flats)


class Entry:
    """An entry that is open to read. It cannot be evicted before it is closed."""

    def __init__(self, path: Path, shape: Shape, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock
        self.states: States = shape.mapped(path, shared=False)
        """[tokens, D] of each stack, mapped: pages are read when they are needed, and shared."""

    def close(self) -> None:
        """Let go of it."""
        self.states = ()
        self._lock.close()


class Draft:
    """An entry that is being made, with all its space reserved.

    Raises:
        OSError: where there is no space.
    """

    def __init__(self, root: Path, key: str, shape: Shape) -> None:
        self._root, self._key, self._shape = root, key, shape
        self.path = root / f".{key}-{uuid.uuid4().hex[:8]}"
        self.path.mkdir(parents=True)
        self.states: States = ()
        """[tokens, D] of each stack, to be written."""
        try:
            for name in shape.files:
                with (self.path / name).open("wb") as file:
                    # Or a full file system kills the process when it writes to the map.
                    os.posix_fallocate(file.fileno(), 0, shape.stack_size)
            self.states = shape.mapped(self.path, shared=True)
        except BaseException:
            self.discard()
            raise

    def commit(self, *, seconds: float, rows: int, described: dict[str, Any]) -> Path:
        """Give the entry its name, with checksums of its contents. Until then nobody sees it.

        Args:
            seconds: what it takes to compute.
            rows: of a canonical batch.
            described: what its key stands for.
        """
        self.states = ()
        files = {name: _checksum(self.path / name, sync=True) for name in self._shape.files}
        manifest = {
            "of": described,
            "rows": rows,
            "seconds": seconds,
            "files": files,
        }
        with (self.path / _MANIFEST).open("w") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        final = self._root / self._key
        shutil.rmtree(final, ignore_errors=True)  # one that is damaged, or it would have been used
        self.path.rename(final)
        return final

    def discard(self) -> None:
        """Give up."""
        self.states = ()
        shutil.rmtree(self.path, ignore_errors=True)


_verified: dict[tuple[str, int, int], bool] = {}
"""Path, inode and time of change of manifests whose files this process has checked."""


def open_entry(root: Path, key: str, shape: Shape) -> Entry | None:
    """The entry called `key`, mapped, if it is there, whole and as it was written."""
    path = root / key
    try:
        lock = (path / _MANIFEST).open()
    except OSError:
        return None
    try:
        # Whoever only looks whether it is read holds the lock for a moment; whoever removes it, to its end.
        fcntl.flock(lock, fcntl.LOCK_SH)
        status = os.fstat(lock.fileno())
        if status.st_nlink == 0:
            raise FileNotFoundError(f"{path} was removed")
        manifest = json.load(lock)
        known = (str(path), status.st_ino, status.st_ctime_ns)
        if known not in _verified:
            if set(manifest["files"]) != set(shape.files):
                raise ValueError(f"{_MANIFEST} is of other files")
            for name, checksum in manifest["files"].items():
                if (path / name).stat().st_size != shape.stack_size or _checksum(path / name) != checksum:
                    raise ValueError(f"{name} is not what was written")
            _verified[known] = True
        os.utime(path)
        return Entry(path, shape, lock)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):  # torch's when it maps
        lock.close()
        return None


def held(root: Path) -> list[Held]:
    """All entries under `root`."""
    found: list[Held] = []
    for path in root.iterdir() if root.is_dir() else ():
        try:
            with (path / _MANIFEST).open() as file:
                seconds = float(json.load(file)["seconds"])
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    in_use = False
                except OSError:
                    in_use = True
            idle_s = max(0.0, time.time() - path.stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append(Held(key=path.name, size=size_of(path), seconds=seconds, idle_s=idle_s, in_use=in_use))
    return found


def remove(root: Path, key: str) -> bool:
    """Remove an entry, unless somebody reads it. Returns whether it is gone."""
    path = root / key
    try:
        with (path / _MANIFEST).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    except FileNotFoundError:
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        return False
    return True


def size_of(path: Path) -> int:
    """Bytes of all files under `path`."""
    total = 0
    for file in path.rglob("*"):
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


@contextmanager
def locked(home: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Alone, of all processes of this machine, with what `name` stands for; without `wait`: whether so."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"{name}{_LOCK}"
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                alone = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except BlockingIOError:
                yield False
                return
            except FileNotFoundError:  # removed while we waited for it
                alone = False
            if alone:
                yield True
                return


def sweep(root: Path, name: str) -> None:
    """Remove the drafts of an entry that a dead process left. The caller holds the entry's lock."""
    for path in root.glob(f".{name}-*"):
        shutil.rmtree(path, ignore_errors=True)


def clear(roots: Sequence[Path], home: Path) -> tuple[int, int]:
    """Remove all under `roots` that nobody reads or makes. Returns the bytes freed and the bytes left.

    Args:
        home: where the locks of all entries are.
    """
    before = sum(map(size_of, roots))
    for key in {_key(path) for root in (home, *roots) for path in root.iterdir()}:
        with locked(home, key, wait=False) as alone:
            if alone:
                for root in roots:
                    if key:
                        sweep(root, key)
                        remove(root, key)
                (home / f"{key}{_LOCK}").unlink(missing_ok=True)
    left = sum(map(size_of, roots))
    for root in roots:
        with suppress(OSError):
            root.rmdir()
    return before - left, left


def _key(path: Path) -> str:
    """Of the entry that something in the store belongs to: itself, a draft of it, or its lock."""
    return path.name.removesuffix(_LOCK).removeprefix(".").partition("-")[0]


def _checksum(path: Path, *, sync: bool = False) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
        if sync:
            os.fsync(file.fileno())
    return value


def write(into: States, at: Tensor, states: States) -> None:
    """Write states [tokens, D] of some examples to where their tokens are, `at`."""
    for whole, part in zip(into, states, strict=True):
        whole.index_copy_(0, at, part.to(whole.device))
