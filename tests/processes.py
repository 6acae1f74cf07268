"""Processes of a test's own, wherever they were started, as they inherit a mark; waiting for what they do."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "THAW_TEST_MARK"


def new_mark(name: str) -> str:
    """A value for `MARK` that no earlier test has given, nor an earlier try of the same one."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


def marked(mark: str) -> dict[int, str]:
    """Pid -> command line of the processes that have `MARK=mark` in their environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = line.decode(errors="replace")
    return found


def parent(pid: int) -> int:
    """The pid of a process's parent."""
    return int(_stat(pid)[1])


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    user, system = _stat(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s `stat` from the state on; what is before them may have blanks and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str = "a condition") -> float:
    """Seconds until `condition` holds.

    Raises:
        TimeoutError: if it does not.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.1)
    return time.monotonic() - began
