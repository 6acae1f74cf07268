"""Sweeps in an object store: worked on in a directory of this process that mirrors them.

All of Thaw works on directories. For `--storage s3://...` that directory is a mirror: what is
in the store is copied into it, what changes is copied back, and the store is what counts. The
journal goes there with each transaction, under a lease; checkpoints never pass here, their
workers put them in the store themselves. On a plain directory all of this does nothing.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.mirror import files, journal
from search.mirror.checkpoints import checkpoint, delete_checkpoint, inside
from search.mirror.files import (
    fetch,
    forget,
    get_directory,
    pull_commands,
    push,
    push_changes,
    put_directory,
    settle,
)
from search.mirror.journal import journal_mirror, pull_journal, replace_journal
from search.mirror.lease import Held, Lease, leases
from search.mirror.places import check_writable, names, open_storage, place_of, shown

__all__ = [
    "Held",
    "check_writable",
    "checkpoint",
    "claim",
    "delete_checkpoint",
    "fetch",
    "forget",
    "get_directory",
    "inside",
    "journal_mirror",
    "names",
    "open_storage",
    "place_of",
    "pull",
    "pull_commands",
    "pull_journal",
    "push",
    "push_changes",
    "pushing",
    "put_directory",
    "release",
    "replace_journal",
    "settle",
    "shown",
]

_PUSH_INTERVAL_S = 5.0
JOURNAL = "study.journal"


def pull(directory: Path) -> None:
    """Bring a sweep's directory up to date with the store, its checkpoints and models aside.

    Raises:
        DamagedFile: if something there does not match its checksum.
        StorageError: if the store cannot be read.
    """
    if directory in leases:  # then what is here is newer
        return
    _pull(directory)


def _pull(directory: Path) -> None:
    files.pull_files(directory)
    pull_journal(directory / JOURNAL)


def claim(directory: Path) -> None:
    """Become the one that writes to a sweep in an object store, and bring its directory up to date.

    Raises:
        Held: if another driver that is alive does.
        StorageError: if the store cannot be read or written.
    """
    place = place_of(directory)
    if place is None or directory in leases:
        return
    lease = Lease(place)
    lease.acquire()
    leases[directory] = lease
    atexit.register(release, directory)
    journal.afresh(directory / JOURNAL)
    _pull(directory)


def release(directory: Path) -> None:
    """Let others write. A lease that cannot be given back runs out by itself."""
    lease = leases.pop(directory, None)
    if lease is not None:
        with suppress(OSError):
            lease.release()


@contextmanager
def pushing(directory: Path) -> Iterator[None]:
    """Copy what changes in a sweep's directory to the store every few seconds, and at the end.

    Large files less often: the ledger, which has all that counts, goes there by itself.
    """
    if place_of(directory) is None:
        yield
        return
    over = threading.Event()

    def loop() -> None:
        while not over.wait(_PUSH_INTERVAL_S):
            with suppress(OSError):  # where it lasts, the journal says so
                push_changes(directory, at_leisure=True)

    pusher = threading.Thread(target=loop, name="mirror", daemon=True)
    pusher.start()
    try:
        yield
    finally:
        over.set()
        pusher.join()
        push_changes(directory)
        put_directory(directory / "wandb")
