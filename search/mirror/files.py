"""A sweep's files in an object store: copied there when they change, checked when they come back.

`.index.json` has the checksums of those that are pushed, the present one and those before it, and is
put before the files: so a reader needs no lock, and a writer may be killed at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from search.mirror.lease import leases
from search.mirror.places import place_of
from training.checksums import CHECKSUMS, DamagedFile, digest, get_tree, put_tree
from training.store import Place

INDEX = ".index.json"
JOURNAL = "study.journal"
COMMANDS = "commands"
# What is put there in other ways: by workers, when done with, or as soon as it is written.
_APART = ("trials", "best", "data", "wandb", COMMANDS)
_OWN_WAY = (JOURNAL, f"{JOURNAL}.lock", "driver.json")
_MAX_INDEX_BYTES = 16 * 2**20
# An object is put whole: a file that grows for days would be put again and again for a line each.
_LEISURE_BYTES_PER_S = 200_000
_LONGEST_LEISURE_S = 120.0

_known: dict[Path, dict[str, str]] = {}
"""Checksums of what the store is known to hold, by a sweep's directory and a file's name."""
_put_at: dict[Path, float] = {}
"""When a file was put there last."""
_lock = threading.RLock()


def pull_files(directory: Path) -> None:
    """Copy a sweep's files to its directory, where those in the store are others.

    Raises:
        DamagedFile: if something there does not match its checksum.
        StorageError: if the store cannot be read.
    """
    place = place_of(directory)
    if place is None:
        return
    index = _read_index(place)
    known = {name: _pull_file(place, name, index, directory) for name in index}
    with _lock:
        _known[directory] = known
    pull_commands(directory)


def _pull_file(place: Place, name: str, index: dict[str, list[str]], directory: Path) -> str:
    """Returns the checksum of what has come."""
    source, file = place / name, directory / name  # in this order: the name may be hostile
    for attempt in range(4):
        # A writer may be between the index and the file.
        digests = (_read_index(place) if attempt else index).get(name, [])
        if file.is_file() and [digest(file)] == digests[:1]:
            return digests[0]
        try:
            data = source.read()
        except FileNotFoundError:
            data = None
        if data is not None and (sha256 := hashlib.sha256(data).hexdigest()) in digests:
            Place(str(file)).write(data)
            return sha256
        time.sleep(0.5 * attempt)
    raise DamagedFile(f"{source}: contents do not match their checksum; it was cut short or altered")


def _read_index(place: Place) -> dict[str, list[str]]:
    try:
        data = (place / INDEX).read()
        index = json.loads(data) if len(data) <= _MAX_INDEX_BYTES else None
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        index = None
    good = isinstance(index, dict) and all(
        isinstance(digests, list) and all(isinstance(each, str) for each in digests)
        for digests in index.values()
    )
    if not good or index is None:
        raise DamagedFile(f"{place / INDEX}: not an index of checksums; it was cut short or altered")
    return dict(index)


def pull_commands(directory: Path) -> None:
    """Copy the commands that are new in the store to the sweep's directory."""
    place = place_of(directory)
    if place is None:
        return
    for name in (place / COMMANDS).children():
        file = directory / COMMANDS / name
        if not file.exists():
            try:
                Place(str(file)).write((place / COMMANDS / name).read())
            except FileNotFoundError:  # taken by the driver meanwhile
                continue


def push(file: Path) -> None:
    """Copy one file of a sweep's directory to the store now.

    Raises:
        StorageError: if it cannot be written.
    """
    place = place_of(file)
    if place is not None:
        place.write(file.read_bytes())


def fetch(file: Path) -> None:
    """Make one file what it is in the store, or absent, unless this process is the one that writes there.

    Raises:
        StorageError: if the store cannot be read.
    """
    place = place_of(file)
    if place is None or file.parent in leases:
        return
    try:
        place.download(file)
    except FileNotFoundError:
        file.unlink(missing_ok=True)


def forget(file: Path) -> None:
    """Remove from the store what a file mirrored."""
    place = place_of(file)
    if place is not None:
        place.remove()


def push_changes(directory: Path, *, at_leisure: bool = False) -> None:
    """Copy what has changed in a sweep's directory to the store, each file's checksum before it.

    Not what is put there in other ways: the journal, commands, checkpoints, models; nor hidden files.

    Args:
        at_leisure: a large file that was put there lately waits, the longer the larger it is.

    Raises:
        StorageError: if the store cannot be written.
    """
    place = place_of(directory)
    if place is None:
        return
    with _lock:
        known = _known.setdefault(directory, {})
        fresh: dict[str, tuple[str, bytes]] = {}
        for file in _own_files(directory):
            if at_leisure and _rests(file):
                continue
            name = file.relative_to(directory).as_posix()
            data = file.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            if known.get(name) != sha256:
                fresh[name] = (sha256, data)
        if not fresh:
            return
        index = _read_index(place)
        for name, (sha256, _) in fresh.items():
            index[name] = [sha256, *[each for each in index.get(name, []) if each != sha256][:2]]
        (place / INDEX).write(json.dumps(index, indent=1).encode())
        # The sweep file last: where it is, the sweep is.
        for name in sorted(fresh, key=lambda name: (name == "sweep.yaml", name)):
            sha256, data = fresh[name]
            (place / name).write(data)
            known[name] = sha256
            _put_at[directory / name] = time.monotonic()


def _rests(file: Path) -> bool:
    rest_s = min(file.stat().st_size / _LEISURE_BYTES_PER_S, _LONGEST_LEISURE_S)
    return time.monotonic() < _put_at.get(file, -math.inf) + rest_s


def _own_files(directory: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(directory):
        top = Path(root) == directory
        folders[:] = [name for name in folders if name[0] != "." and not (top and name in _APART)]
        for name in files:
            if name[0] != "." and name not in _OWN_WAY:
                yield Path(root) / name


def put_directory(directory: Path) -> None:
    """Copy a model's directory, or any other that is done with, to the store; its checksums last."""
    place = place_of(directory)
    if place is not None and directory.is_dir():
        (place / CHECKSUMS).remove()
        put_tree(directory, place)


def get_directory(directory: Path) -> None:
    """Copy from the store what `put_directory` put there, where it is not here yet.

    Raises:
        DamagedFile: if something there does not match its checksum.
        StorageError: if the store cannot be read.
    """
    place = place_of(directory)
    if place is not None and not directory.exists():
        get_tree(place, directory)


def settle() -> None:
    """Copy to the store what this process has changed in the directories that it has read.

    Raises:
        StorageError: if the store cannot be written.
    """
    for directory in list(_known):
        push_changes(directory)
