"""Files that are copied to a place and back, and are known by their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.store import Place

CHECKSUMS = "checksums.json"


class DamagedFile(ValueError):
    """A file whose contents are not those that its checksum was taken of."""


def digest(file: Path) -> str:
    """SHA-256 of a file's contents, as hex."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def describe(file: Path) -> dict[str, Any]:
    """Size and checksum of a file's contents."""
    return {"bytes": file.stat().st_size, "sha256": digest(file)}


def put_tree(directory: Path, place: Place) -> None:
    """Copy the files below a local `directory` to `place`, their checksums last.

    Raises:
        StorageError: if they cannot be written.
    """
    described: dict[str, dict[str, Any]] = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = file.relative_to(directory).as_posix()
        (place / name).upload(file)
        described[name] = describe(file)
    (place / CHECKSUMS).write(json.dumps(described, indent=1).encode())


def get_tree(place: Place, directory: Path) -> None:
    """Copy what `put_tree` has put to `place` to a local directory; nothing where it did not come to an end.

    Raises:
        DamagedFile: if something there is not what its checksum was taken of.
        StorageError: if it cannot be read.
    """
    try:
        described = json.loads((place / CHECKSUMS).read())
    except FileNotFoundError:
        return
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        raise DamagedFile(f"{place / CHECKSUMS}: not checksums; it was cut short or altered")
    get_files(place, described, directory)


def get_files(place: Place, described: Mapping[str, Mapping[str, Any]], directory: Path) -> None:
    """Copy the `described` files (name -> `bytes`, `sha256`) to a local directory.

    Raises:
        DamagedFile: if one is missing, or is not what its checksum was taken of.
        StorageError: if they cannot be read.
    """
    for name, wanted in described.items():
        source, file = place / name, directory / name
        try:
            source.download(file)
        except FileNotFoundError as error:
            raise DamagedFile(f"{source}: is missing") from error
        if describe(file) != wanted:
            raise DamagedFile(f"{source}: contents do not match their checksum; it was cut short or altered")
