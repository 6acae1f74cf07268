"""How the ledger is stored by default: a journal file under an Optuna study.

The journal has one JSON line an operation and is written in whole batches. It differs from Optuna's
own `JournalFileBackend` in what a sweep that may be killed needs: a transaction reaches the file in
one write, so a kill leaves no half-drawn trial; a line torn by a crash is cut off before the next
one is written; the lock of a dead process is broken at once instead of after half a minute; and
a writer with patience goes on in memory while the file is out of reach, and catches up when it is back.
The format and the lock's name are Optuna's, so the file opens in optuna-dashboard.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from search.locks import FileLock
from search.mirror import journal_mirror


class Journal(BaseJournalBackend):
    """A journal file with transactions, for one storage in one process at a time.

    Other processes may read and append as well. `path` must lie in a directory that exists.
    """

    atomic = True
    """A transaction reaches the file whole or not at all."""

    def __init__(self, path: Path, *, patience_s: float = 0.0) -> None:
        """`patience_s`: how long what is written stays in memory while the file is out of reach."""
        self.path = path
        self.overtaken = False
        """Whether others wrote while the file was out of reach: the storage on top must be loaded anew."""
        self._patience_s = patience_s
        self._mirror = journal_mirror(path)
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._offsets = [0]  # byte at which each line starts
        self._pending: list[str] | None = None
        self._base: int | None = None  # number of the first pending line, once the file has been read
        self._backlog: list[str] = []  # lines of transactions that have not reached the file
        self._away_since: float | None = None

    def load(self) -> JournalStorage:
        """Optuna's storage on top, read afresh."""
        self.overtaken = False
        return JournalStorage(self)

    @property
    def away(self) -> bool:
        """Whether something that was written is still in memory alone."""
        return bool(self._backlog)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the lock and collect what is appended; write it at the end, or not at all on an exception.

        After an exception the storage on top is ahead of the file and must be built anew.

        Raises:
            OSError: the file is out of reach, and has been for longer than the patience.
        """
        assert self._pending is None, "transactions do not nest"
        try:
            reached = self._enter()  # inside: an interrupt must not leave it locked
            self._pending, self._base = [], None
            yield
            self._commit(reached)
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
        with self.transaction():
            self._pending = lines

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """All lines from number `log_number_from` on, those not in the file yet included."""
        number, known = log_number_from, len(self._offsets) - 1
        if self._backlog:  # it stands behind what is known of the file
            if number < known:
                yield from islice(self._read(number), known - number)
                number = known
        elif self._pending is None or self._base is None:  # while we hold the lock nobody else appends
            try:
                for line in self._read(log_number_from):
                    number += 1
                    yield line
            except OSError as error:
                if log_number_from < known:
                    raise
                self._bear(error)
            if self._pending is not None:
                self._base = number
        unwritten = self._backlog + (self._pending or [])
        if unwritten:
            base = known if self._backlog else self._base
            assert base is not None
            for text in unwritten[number - base :]:
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
                    found = entry(line)
                    if found is None:
                        raise ValueError(
                            f"{self.path}: line {number} is not readable; `resume` cuts it off, keeps the "
                            f"file as it is beside it, and says what is lost"
                        )
                    yield found

    def _enter(self) -> bool:
        """Take the lock and write what had to wait; False while the file is out of reach."""
        try:
            self._lock.acquire()
            if self._backlog:
                self._catch_up()
        except OSError as error:
            self._bear(error)
            return False
        self._away_since = None
        return True

    def _commit(self, reached: bool) -> None:
        assert self._pending is not None
        if not self._pending:
            return
        if reached:
            try:
                self._write(self._pending)
                return
            except OSError as error:
                self._bear(error)
        self._backlog += self._pending

    def _bear(self, error: OSError) -> None:
        """Put up with a file that is out of reach, as long as there is patience."""
        if self._away_since is None:
            self._away_since = time.monotonic()
        if time.monotonic() - self._away_since >= self._patience_s:
            waited = f", for {self._patience_s:.0f} s now" if self._patience_s else ""
            raise OSError(
                error.errno, f"{self.path} cannot be read or written{waited}: {error.strerror or error}"
            ) from error

    def _catch_up(self) -> None:
        """Write the backlog behind what others have written meanwhile."""
        with open(self.path, "rb") as file:
            file.seek(self._offsets[-1])
            fresh = [line[:-1].decode() for line in file if line.endswith(b"\n")]
        # A write that was cut short may have brought the first lines of it to the file.
        arrived = _common(fresh, self._backlog)
        self._write(self._backlog[arrived:])
        self._backlog.clear()
        self.overtaken = self.overtaken or len(fresh) > arrived

    def _write(self, lines: Sequence[str]) -> None:
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            start = _cut_torn_line(file)
            rest = memoryview("".join(line + "\n" for line in lines).encode())
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
                if self._mirror is not None:
                    self._mirror.push()
            except OSError:
                with suppress(OSError):  # all of it or nothing; else `_catch_up` sees how far it came
                    file.truncate(start)
                raise


def entry(line: bytes) -> dict[str, Any] | None:
    """An entry of a journal; None for anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # of JSON and of UTF-8
        return None
    return found if isinstance(found, dict) and isinstance(found.get("op_code"), int) else None


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """How many lines both start with."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return same


def _cut_torn_line(file: Any) -> int:
    """Truncate `file` after its last complete line. Nobody has read the rest: it lacks its end.

    Returns:
        Where the next line starts.
    """
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
    return position
