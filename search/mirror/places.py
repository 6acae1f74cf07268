"""Which directories of this process mirror an object store, and where in it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from training.store import Place

_PREFIX = "thaw-mirror-"

_mirrors: dict[Path, Place] = {}


def open_storage(text: str, setting: str = "--storage") -> Path:
    """The directory that a setting names, or one that mirrors the object store that it names.

    Raises:
        ValueError: if it is no place.
    """
    place = Place.parse(text, setting)
    if place.is_local:
        return Path(place.uri)
    for root, mirrored in _mirrors.items():
        if mirrored == place:
            return root
    _tidy()
    root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    _mirrors[root] = place
    return root


def _tidy() -> None:
    """Remove the mirrors of processes that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (ValueError, OSError):  # another's, or no mirror
            continue


def place_of(path: Path) -> Place | None:
    """What `path` mirrors; None for a path of a plain directory."""
    for root, place in _mirrors.items():
        if path == root:
            return place
        if path.is_relative_to(root):
            return place / path.relative_to(root).as_posix()
    return None


def shown(path: Path) -> str:
    """`path` as a user, or another machine, may know it: the URI of what it mirrors, or itself."""
    return str(place_of(path) or path)


def names(directory: Path) -> list[str]:
    """The names of what lies in a directory, or in what it mirrors; hidden files of a mirror aside."""
    place = place_of(directory)
    if place is not None:
        return [name for name in place.children() if name[0] != "."]
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def check_writable(directory: Path, setting: str = "--storage") -> None:
    """Check that what `directory` mirrors can be written.

    Raises:
        ValueError: if it cannot, saying why.
    """
    place = place_of(directory)
    if place is None:
        return
    probe = place / f".probe-{os.getpid()}"
    try:
        probe.write(b"")
        probe.remove()
    except OSError as error:
        raise ValueError(f"{setting}: {error}") from error
