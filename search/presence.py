"""Who drives a sweep: one process at a time, seen by everybody who reaches its directory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from search import mirror
from search.locks import FileLock, began, dead, machine

FILE = "driver.json"
BEAT_S = 5.0
_SILENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Driving:
    """The process that drives a sweep."""

    id: str
    holder: str
    """Machine, process id, and when the process began, as `dead` takes it."""
    host: str
    pid: int
    since: float
    """Seconds since 1970, as is `beat`."""
    beat: float
    """When it last said that it is there."""


class Taken(ValueError):
    """Another process drives the sweep."""


class Presence:
    """The mark that the driver of a sweep leaves in its directory, as long as it is there."""

    def __init__(self, sweep: Path) -> None:
        """`sweep`: the sweep's directory."""
        self._sweep = sweep
        self._path = sweep / FILE
        self._own: Driving | None = None

    def driver(self) -> Driving | None:
        """Who drives the sweep; None when nobody does, or nobody who is still there."""
        try:
            mirror.fetch(self._path)
            found = Driving(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        if found.holder.partition(" ")[0] == machine():
            gone = dead(found.holder) or began(found.pid) != found.holder.rpartition(" ")[2]
        else:
            gone = time.time() - found.beat > _SILENCE_S
        return None if gone else found

    def check(self) -> None:
        """Check that nobody drives the sweep.

        Raises:
            Taken: a process does.
        """
        other = self.driver()
        if other is not None:
            raise Taken(
                f"{self._sweep.name}: process {other.pid} on {other.host} drives this sweep already; "
                f"follow it with `logs {self._sweep.name} -f`, or end it with `pause` or `stop`"
            )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Drive the sweep.

        Raises:
            Taken: another process does.
        """
        self.check()
        try:
            mirror.claim(self._sweep)
        except mirror.Held as error:
            raise Taken(str(error)) from error
        lock = FileLock(self._sweep / f"{FILE}.lock")
        try:
            lock.acquire()
            self.check()
            now, pid = time.time(), os.getpid()
            self._own = Driving(
                id=uuid.uuid4().hex,
                holder=f"{machine()} {pid} {began(pid)}",
                host=socket.gethostname(),
                pid=pid,
                since=now,
                beat=now,
            )
            self._write(self._own)
        finally:
            lock.release()
        try:
            yield
        finally:
            if self._is_own():
                with contextlib.suppress(OSError):
                    self._path.unlink()
                    mirror.forget(self._path)
            self._own = None
            mirror.release(self._sweep)

    def beat(self) -> bool:
        """Say that this process is still there; False when another one has taken its place."""
        assert self._own is not None, "it drives nothing"
        try:
            if not self._is_own():
                return False
            self._write(Driving(**{**asdict(self._own), "beat": time.time()}))
        except OSError:  # out of reach: nobody else can take it over either
            pass
        return True

    def _is_own(self) -> bool:
        try:
            stored = json.loads(self._path.read_text())
        except FileNotFoundError:  # lost with its directory, not taken
            return True
        except (OSError, ValueError):
            return True
        return self._own is not None and stored.get("id") == self._own.id

    def _write(self, driving: Driving) -> None:
        draft = self._path.with_name(f".{FILE}.{os.getpid()}")
        draft.write_text(json.dumps(asdict(driving)))
        os.replace(draft, self._path)
        mirror.push(self._path)
