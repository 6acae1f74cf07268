"""Processes of a test's own, wherever they were started: they inherit a mark."""

from __future__ import annotations

import contextlib
from pathlib import Path

MARK = "THAW_TEST_MARK"


def marked(mark: str) -> dict[int, str]:
    """Pid -> command line of the processes that have `MARK=mark` in their environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = line.decode(errors="replace")
    return found
