"""One writer at a time for a sweep in an object store, which has no locks: a lease that is renewed.

Whoever holds it renews it every `RENEW_S`. Whoever wants it watches for `LEASE_S`: a lease that
was not renewed meanwhile belongs to a driver that died, by the watcher's own clock, so clocks
need not agree; one whose holder ran on this machine and is gone is taken at once. A holder that
could not renew for that long writes nothing more until it has seen that the lease is still its own.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from search.locks import dead, machine
from training.store import Place, StorageError, patience_s

RENEW_S = 5.0
LEASE_S = 30.0
# Two that take a lease at the same moment: the later one to write has it after this.
SETTLE_S = 1.0
FILE = ".lease.json"
_PATIENCE_S = 10.0

leases: dict[Path, Lease] = {}
"""What this process holds, by the sweep's directory."""


class Held(ValueError):
    """Another driver that is alive works on the sweep."""


class LeaseLost(OSError):
    """Another driver works on the sweep now."""


def held(place: Place) -> dict[str, Any] | None:
    """What the lease on `place` says: `token`, `holder`, `renewed`; None where there is none.

    A damaged one says nothing, and so belongs to nobody.
    """
    try:
        said = json.loads((place / FILE).read(patience=patience_s(_PATIENCE_S)))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {"token": "", "holder": "", "renewed": 0}
    return said if isinstance(said, dict) and isinstance(said.get("token"), str) else None


class Lease:
    """A lease on a sweep's place, held from `acquire` to `release`."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._token = uuid.uuid4().hex
        self._count = 0
        self._renewed_at = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def acquire(self) -> None:
        """Take the lease, once nobody else holds it.

        Raises:
            Held: if a driver that is alive has it.
            StorageError: if the store cannot be read or written.
        """
        other, since = held(self.place), time.monotonic()
        while other is not None:
            holder = str(other.get("holder", ""))[:200]
            if dead(holder) or time.monotonic() - since > LEASE_S:
                break
            time.sleep(RENEW_S / 10)
            now = held(self.place)
            if now is not None and now != other:
                raise Held(
                    f"{self.place} is at work already ({holder.split(' ')[0]}); "
                    f"stop it there, or wait until it has ended"
                )
            other = now
        self._write()
        time.sleep(SETTLE_S)
        if not self._mine():
            raise Held(f"{self.place} was taken by another driver at the same moment; try again later")
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def check(self) -> None:
        """Make sure that the lease is still this one's, before something is written under it.

        Raises:
            LeaseLost: if it is not.
            StorageError: if that cannot be found out.
        """
        if time.monotonic() - self._renewed_at > LEASE_S - 2 * RENEW_S:
            self._renew()

    def release(self) -> None:
        """Give the lease back."""
        self._over.set()
        with self._lock:
            if self._mine():
                (self.place / FILE).remove()

    def _keep(self) -> None:
        while not self._over.wait(RENEW_S):
            try:
                self._renew()
            except LeaseLost:
                return  # `check` says so
            except StorageError:
                continue

    def _renew(self) -> None:
        with self._lock:
            if self._over.is_set():
                return
            if not self._mine():
                self._renewed_at = 0.0
                raise LeaseLost(f"{self.place}: another driver works on this sweep now")
            self._write()

    def _mine(self) -> bool:
        other = held(self.place)
        return other is not None and other["token"] == self._token

    def _write(self) -> None:
        began = time.monotonic()
        self._count += 1
        said = {"token": self._token, "holder": f"{machine()} {os.getpid()}", "renewed": self._count}
        (self.place / FILE).write(json.dumps(said).encode(), patience=patience_s(_PATIENCE_S))
        self._renewed_at = began
