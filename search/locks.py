"""Mutual exclusion between processes that share a directory."""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class FileLock:
    """Mutual exclusion by a symbolic link, which all NFS versions make exclusively.

    The link's target is no file but names the holder, so that there is no moment at which a
    kill leaves a lock of nobody. A holder on this machine that is no longer alive loses the lock
    at once, any other after `grace_period_s` without change.
    """

    def __init__(self, path: Path, *, grace_period_s: float = 30.0) -> None:
        self.path = path
        self.grace_period_s = grace_period_s
        self._token = ""

    def acquire(self) -> None:
        """Wait for the lock and take it."""
        self._token = f"{machine()} {os.getpid()} {uuid.uuid4().hex}"
        wait_s, seen, since = 0.001, ("", 0), time.monotonic()
        while True:
            try:
                os.symlink(self._token, self.path)
                return
            except FileExistsError:
                holder = self._holder()
            if holder != seen:
                seen, since = holder, time.monotonic()
            if dead(holder[0]) or time.monotonic() - since > self.grace_period_s:
                with _alone(self.path.parent):
                    if self._holder() == holder:  # not broken and taken by somebody else meanwhile
                        self._remove()
                continue
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.1)

    def release(self) -> None:
        """Give the lock back, unless it was taken away meanwhile."""
        if self._holder()[0] == self._token:
            self._remove()

    def _holder(self) -> tuple[str, int]:
        """Who has the lock since when; differs for two holds of Optuna's own locks as well."""
        try:
            since = os.lstat(self.path).st_mtime_ns
            return os.readlink(self.path) if os.path.islink(self.path) else "", since
        except OSError:  # gone meanwhile
            return "", 0

    def _remove(self) -> None:
        # Renamed first, so that of two that break a stale lock only one succeeds.
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        with suppress(OSError):
            os.rename(self.path, aside)
            os.unlink(aside)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """For a moment, the only one on this machine to break locks in `directory`; a kill ends it as well."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without such locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def machine() -> str:
    """Names the space in which process ids are unique: containers may share a host name."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname()}/{namespace}"


def dead(holder: str) -> bool:
    """Whether a `holder` (machine, process id, anything) ran on this machine and no longer exists."""
    where, _, rest = holder.partition(" ")
    pid = rest.partition(" ")[0]
    if where != machine() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return began(int(pid)) is None  # a zombie: killed, and nobody has asked for its exit status


def began(pid: int) -> str | None:
    """When a process of this machine began, so that a later one with its id is not taken for it.

    None where it has ended, or cannot be seen at all.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
