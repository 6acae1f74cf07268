"""The working directory of a job: Thaw's own source, the sweep's file, and the data that it names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SWEEP_FILE = "sweep.yaml"
_SOURCE = Path(__file__).resolve().parents[2]
_PARTS = ("cluster", "search", "training")
_MAX_BYTES = 200_000_000


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A sweep as it is sent."""

    name: str
    text: str
    """The sweep's file, in which `files` are named as they are in the working directory."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name in the working directory -> file or directory here."""


def stage(directory: Path, submission: Submission | None = None) -> None:
    """Fill an empty directory with what a job needs, and nothing else: no .git, no environment, no results.

    Raises:
        ValueError: if it is too large to be sent.
    """
    wanted = _source() | _data(submission.files if submission else {})
    size = sum(path.stat().st_size for path in wanted.values())
    if size > _MAX_BYTES:
        largest = max(wanted.values(), key=lambda path: path.stat().st_size)
        raise ValueError(
            f"data: {size / 1e6:,.0f} MB would be sent to the cluster ({largest} is the largest file), and "
            f"{_MAX_BYTES / 1e6:,.0f} MB may be; put the data where all nodes see it and name that place"
        )
    for name, path in wanted.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if submission is not None:
        (directory / SWEEP_FILE).write_text(submission.text)


def _source() -> dict[str, Path]:
    found = {"launch.py": _SOURCE / "launch.py"}
    for part in _PARTS:
        for path in _files(_SOURCE / part):
            found[str(path.relative_to(_SOURCE))] = path
    return found


def _data(files: Mapping[str, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in files.items():
        if path.is_dir():
            found |= {f"{name}/{inner.relative_to(path)}": inner for inner in _files(path)}
        else:
            found[name] = path
    return found


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside):
            yield path
