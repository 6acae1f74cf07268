"""The checkpoints that a ledger names, wherever they lie. Nothing outside the sweep's directory is meant."""

from __future__ import annotations

import shutil
from pathlib import Path

from search.mirror.places import place_of, shown
from training.manifest import MANIFEST


def checkpoint(location: str, directory: Path) -> Path:
    """The checkpoint of a sweep's ledger as a directory on this machine, copied there if need be.

    Of what the ledger says only the trial's and the checkpoint's name count: the sweep may have been
    copied or renamed, and nothing outside its directory is meant.

    Args:
        location: as in the ledger.
        directory: the sweep's.

    Raises:
        ValueError: if there is no such checkpoint, or it is damaged.
    """
    from training.checkpoint import fetch

    path = inside(location, directory)
    place = place_of(path)
    if place is not None and not path.is_dir():
        fetch(place, path)
    return path


def inside(location: str, directory: Path) -> Path:
    """Where a checkpoint lies in a sweep's directory, of what the ledger says.

    Raises:
        ValueError: if it would not.
    """
    parts = location.rstrip("/").rsplit("/", 3)[-3:]
    if len(parts) < 3 or parts[0] != "trials" or {"", ".", ".."} & {*parts} or not location.isprintable():
        raise ValueError(f"{location[:200]!r} is not a checkpoint of a sweep in {shown(directory)}")
    return directory.joinpath(*parts)


def delete_checkpoint(location: str, directory: Path) -> None:
    """Delete a checkpoint of a sweep.

    Raises:
        ValueError: see `inside`.
        StorageError: if the store cannot be written.
    """
    path = inside(location, directory)
    shutil.rmtree(path, ignore_errors=True)
    place = place_of(path)
    if place is not None:
        (place / MANIFEST).remove()  # first: what is half deleted is no checkpoint
        place.remove_tree()
