"""How the ledger is stored: a journal file under an Optuna study, and a trial's record in it.

The journal has one JSON line an operation and is written in whole batches. It differs from Optuna's
own `JournalFileBackend` in what a sweep that may be killed needs: a transaction reaches the file in
one write, so a kill leaves no half-drawn trial; a line torn by a crash is cut off before the next
one is written; and the lock of a dead process is broken at once instead of after half a minute.
The format and the lock's name are Optuna's, so the file opens in optuna-dashboard.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search.records import PhaseRecord, Result, TrialRecord, TrialState

_READ = {
    OptunaState.RUNNING: TrialState.RUNNING,
    OptunaState.COMPLETE: TrialState.COMPLETE,
    OptunaState.PRUNED: TrialState.PRUNED,
    OptunaState.FAIL: TrialState.FAILED,
}


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
        self._token = f"{_machine()} {os.getpid()} {uuid.uuid4().hex}"
        wait_s, seen, since = 0.001, ("", 0), time.monotonic()
        while True:
            try:
                os.symlink(self._token, self.path)
                return
            except FileExistsError:
                holder = self._holder()
            if holder != seen:
                seen, since = holder, time.monotonic()
            if _dead(holder[0]) or time.monotonic() - since > self.grace_period_s:
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


class Journal(BaseJournalBackend):
    """A journal file with transactions, for one storage in one process at a time.

    Other processes may read and append as well. `path` must lie in a directory that exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._offsets = [0]  # byte at which each line starts
        self._pending: list[str] | None = None
        self._base: int | None = None  # number of the first pending line, once the file has been read

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the lock and collect what is appended; write it at the end, or not at all on an exception.

        After an exception the storage on top is ahead of the file and must be built anew.
        """
        assert self._pending is None, "transactions do not nest"
        try:
            self._lock.acquire()  # inside: an interrupt must not leave it locked
            self._pending, self._base = [], None
            yield
            if self._pending:
                self._write(self._pending)
        finally:
            self._pending = None
            self._lock.release()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append `logs` durably, or collect them within a transaction."""
        # NaN and Infinity are no JSON: other readers of the file would choke on them.
        lines = [json.dumps(log, separators=(",", ":"), allow_nan=False) for log in logs]
        if self._pending is not None:
            self._pending += lines
            return
        try:
            self._lock.acquire()
            self._write(lines)
        finally:
            self._lock.release()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """All lines from number `log_number_from` on, those of an open transaction included."""
        number = log_number_from
        if self._pending is None or self._base is None:  # while we hold the lock nobody else appends
            for line in self._read(log_number_from):
                number += 1
                yield line
            if self._pending is not None:
                self._base = number
        if self._pending is not None:
            assert self._base is not None
            for text in self._pending[number - self._base :]:
                yield json.loads(text)

    def _read(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        number = min(log_number_from, len(self._offsets) - 1)
        with open(self.path, "rb") as file:
            file.seek(self._offsets[number])
            for line in file:
                if not line.endswith(b"\n"):
                    return  # being written by somebody else, or torn: `_write` decides
                if number + 1 == len(self._offsets):
                    self._offsets.append(self._offsets[number] + len(line))
                number += 1
                if number > log_number_from:
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        raise ValueError(f"{self.path}: line {number} is not readable: {error}") from error

    def _write(self, lines: list[str]) -> None:
        with open(self.path, "r+b") as file:
            file.seek(0, os.SEEK_END)
            _cut_torn_line(file)
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_line(file: Any) -> None:
    """Truncate `file` after its last complete line. Nobody has read the rest: it lacks its end."""
    end = file.tell()
    position = end
    while position > 0:
        step = min(position, 65536)
        file.seek(position - step)
        found = file.read(step).rfind(b"\n")
        if found >= 0:
            position = position - step + found + 1
            break
        position -= step
    if position < end:
        file.truncate(position)
    file.seek(position)


def _machine() -> str:
    """Names the space in which process ids are unique: containers may share a host name."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname()}/{namespace}"


def _dead(holder: str) -> bool:
    """Whether the lock's `holder` ran on this machine and no longer exists."""
    machine, _, rest = holder.partition(" ")
    pid = rest.partition(" ")[0]
    if machine != _machine() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def derived_seed(seed: int, number: int, purpose: str) -> int:
    """A seed in [0, 2**31) for one purpose of one trial; unrelated for all others."""
    digest = hashlib.sha256(f"{seed}/{number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def to_record(frozen: FrozenTrial, seed: int, deleted: frozenset[str]) -> TrialRecord:
    """The record of Optuna's `frozen`, in a sweep seeded with `seed`, without the `deleted` checkpoints."""
    attributes = frozen.user_attrs
    state = TrialState(attributes.get("state", _READ[frozen.state]))
    if state.finished != frozen.state.is_finished():  # closed by another tool
        state = _READ[frozen.state]
    stored = [value for key, value in attributes.items() if key.startswith("result:")]
    results = [Result.from_json(value) for value in stored]
    results = [replace(r, checkpoint=None) if r.checkpoint in deleted else r for r in results]
    return TrialRecord(
        number=frozen.number,
        state=state,
        params=attributes.get("params", frozen.params),
        seed=attributes.get("seed", derived_seed(seed, frozen.number, "trial")),
        results=tuple(sorted(results, key=lambda r: r.epochs)),
        phases=tuple(PhaseRecord(**phase) for phase in attributes.get("phases", ())),
        error=attributes.get("error"),
    )
