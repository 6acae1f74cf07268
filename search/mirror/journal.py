"""A sweep's journal in an object store: in pieces, each with its checksum and named by where it starts.

A transaction is one put, of the last piece with the new lines at its end; a piece that is large enough is
never put again. So a reader sees each transaction whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from search.mirror.lease import leases
from search.mirror.places import place_of
from training.checksums import DamagedFile
from training.store import Place, patience_s

_PIECE_BYTES = 256 * 1024
# Short: whoever writes the journal has patience of its own, in which work goes on.
_PATIENCE_S = 10.0

# A piece that is put again while it is read comes as neither of the two: clients ask for its size first.
_TRIES = 4

_journals: dict[Path, JournalMirror] = {}


class JournalMirror:
    """Copies a journal's new lines to the store. For the lease's holder alone."""

    def __init__(self, path: Path, place: Place) -> None:
        self._path = path
        self._place = place
        self._starts = [0]
        """Where the pieces start that are in the store; the last may be put again."""
        self._end = 0
        self.begun = False
        """Whether it is known what is in the store."""

    def push(self) -> None:
        """Put what is new, as one object, so that a transaction is in the store whole or not at all.

        Raises:
            LeaseLost: if another driver works on the sweep now.
            StorageError: if the store cannot be written.
        """
        leases[self._path.parent].check()
        with self._path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if end < self._end:  # cut back: what is in the store goes from its end
                while self._starts[-1] > 0 and self._starts[-1] >= end:
                    self._piece(self._starts.pop()).remove()
            file.seek(self._starts[-1])
            data = file.read()
        piece = hashlib.sha256(data).hexdigest().encode() + b"\n" + data
        self._piece(self._starts[-1]).write(piece, patience=patience_s(_PATIENCE_S))
        self._end, self.begun = end, True
        if len(data) >= _PIECE_BYTES:
            self._starts.append(end)

    def replace(self) -> None:
        """Put the whole journal in place of what is there, from whose end it is taken away, but for the first
        piece: the store is never without a journal.

        Raises:
            LeaseLost: if another driver works on the sweep now.
            StorageError: if the store cannot be written.
        """
        leases[self._path.parent].check()
        for name in reversed(self._place.children()[1:]):
            (self._place / name).remove()
        self._starts, self._end = [0], 0
        self.push()

    def _piece(self, start: int) -> Place:
        return self._place / f"{start:015d}"

    def seen(self, starts: list[int], end: int, last_bytes: int) -> None:
        """Take up a journal that is in the store."""
        self._starts, self._end, self.begun = list(starts) or [0], end, True
        if last_bytes >= _PIECE_BYTES:
            self._starts.append(end)


def journal_mirror(path: Path) -> JournalMirror | None:
    """What copies the journal at `path` to the store; None for one in a plain directory."""
    place = place_of(path)
    if place is None:
        return None
    return _journals.setdefault(path, JournalMirror(path, place))


def pull_journal(path: Path) -> None:
    """Make the journal at `path` what it is in the store, unless this process is the one that writes it.

    Raises:
        DamagedFile: if a piece is missing or altered.
        StorageError: if the store cannot be read.
    """
    mirror = journal_mirror(path)
    if mirror is None or (path.parent in leases and mirror.begun):
        return
    place = place_of(path)
    assert place is not None
    pieces = _pieces(place)
    starts = [start for start, _ in pieces]
    whole = b"".join(data for _, data in pieces)
    mirror.seen(starts, len(whole), len(pieces[-1][1]) if pieces else 0)
    if pieces:
        Place(str(path)).write(whole)


def _pieces(place: Place) -> list[tuple[int, bytes]]:
    """Where each piece of a journal in the store starts, and what it holds."""
    for attempt in range(1, _TRIES):
        try:
            return _pieces_now(place)
        except DamagedFile:  # put again, or cut back, meanwhile
            time.sleep(0.25 * attempt)
    return _pieces_now(place)


def _pieces_now(place: Place) -> list[tuple[int, bytes]]:
    found, end = list[tuple[int, bytes]](), 0
    for name in place.children():
        try:
            head, _, data = (place / name).read().partition(b"\n")
        except FileNotFoundError:
            head, data = b"", b""
        if name != f"{end:015d}" or hashlib.sha256(data).hexdigest().encode() != head:
            raise DamagedFile(f"{place / name}: a piece of the journal is missing or was altered")
        found.append((end, data))
        end += len(data)
    return found


def replace_journal(path: Path) -> None:
    """Put the journal at `path` in place of what is in the store, whatever that is."""
    mirror = journal_mirror(path)
    if mirror is not None:
        mirror.replace()


def afresh(path: Path) -> None:
    """Forget what was known of the store: another may have written there."""
    _journals.pop(path, None)
