"""The manifest of a checkpoint: what it says, and that it says so. Read as if a stranger had written it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FORMAT = 3
MANIFEST = "manifest.json"
_MAX_BYTES = 64 * 2**20
_FILE = re.compile(r"(weights|slots)-\d{5}-of-\d{5}(\.[0-9a-f]{1,32})?\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is not whole, or was altered."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number, value.values()))


def _told(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"step", "metrics", "costs"}
        and _count(value["step"])
        and _metrics(value["metrics"])
        and _metrics(value["costs"])
    )


def _file(name: str, value: Any) -> bool:
    return (
        _FILE.fullmatch(name) is not None
        and isinstance(value, dict)
        and value.keys() == {"bytes", "sha256"}
        and _count(value["bytes"])
        and isinstance(value["sha256"], str)
        and _SHA256.fullmatch(value["sha256"]) is not None
    )


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "identity": lambda value: isinstance(value, dict),
    "step": _count,
    "seconds": _number,
    "optimizer_steps": lambda value: isinstance(value, dict) and all(map(_count, value.values())),
    "scaler": lambda value: value is None or _metrics(value),
    "losses": lambda value: isinstance(value, list) and all(map(_number, value)),
    "phase": lambda value: isinstance(value, str) and len(value) < 1000,
    "history": lambda value: isinstance(value, list) and all(map(_told, value)),
    "files": lambda value: isinstance(value, dict) and all(_file(*item) for item in value.items()),
    "sha256": lambda value: isinstance(value, str),
}
"""What a manifest has to say, and whether a value can be meant."""


def text(said: Mapping[str, Any]) -> str:
    """The file of a manifest that says `said`, with format and checksum."""
    whole = {"format": FORMAT, **said}
    return json.dumps({**whole, "sha256": digest(whole)}, indent=1)


def digest(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says, besides the digest itself."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at `path`.

    Raises:
        CheckpointError: if there is none, or one of another format.
    """
    file = path / MANIFEST
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{MANIFEST} has more than {_MAX_BYTES:,} bytes")
        manifest = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path}: not a checkpoint, or one that was cut short: {error}") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise DamagedCheckpoint(
            f"{path}: not a checkpoint, or one that was altered: no format in its manifest"
        )
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {repr(manifest['format'])[:40]}, this version reads {FORMAT}"
        )
    if missing := sorted(_FIELDS.keys() - manifest.keys()):
        raise DamagedCheckpoint(f"{path}: the manifest lacks {', '.join(missing)}")
    if wrong := [key for key, can_be_meant in _FIELDS.items() if not can_be_meant(manifest[key])]:
        raise DamagedCheckpoint(f"{path}: the manifest was altered: {', '.join(wrong)} cannot be right")
    if manifest["sha256"] != digest(manifest):
        raise DamagedCheckpoint(f"{path}: the manifest was altered: it does not match its checksum")
    return manifest
