"""What a user's mistake looks like: one readable message, exit code 2, and nothing started or changed."""

from __future__ import annotations

from pathlib import Path

from tests.cli import Outcome, Thaw


def files(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def refused(outcome: Outcome, *lines: str) -> None:
    assert outcome.err == "error: " + "\n".join(lines) + "\n"
    assert outcome.out == ""
    assert outcome.code == 2


def run(thaw: Thaw, sweep: Path, *overrides: str) -> Outcome:
    sets = [part for override in overrides for part in ("--set", override)]
    return thaw("run", sweep, "--storage", sweep.parent / "runs", *sets)
