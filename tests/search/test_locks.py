"""The lock on a ledger: held by one, and by nobody who is dead."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from search.locks import FileLock

ROOT = Path(__file__).parents[2]


def test_a_dead_holder_loses_the_lock_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = "import os, sys; from pathlib import Path; from search.locks import FileLock; "
    code += "FileLock(Path(sys.argv[1])).acquire(); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert path.is_symlink()
    begun = time.monotonic()
    lock = FileLock(path)
    lock.acquire()
    assert time.monotonic() - begun < 1
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_living_holder_keeps_the_lock(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.acquire()
    taken = threading.Event()

    def wait() -> None:
        second.acquire()
        taken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not taken.wait(0.2)
    first.release()
    assert taken.wait(2)
    waiter.join()


def test_a_foreign_lock_without_change_is_broken_after_the_grace_period(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.symlink_to("elsewhere/1 1 abc")
    begun = time.monotonic()
    FileLock(path, grace_period_s=0.3).acquire()
    assert 0.25 < time.monotonic() - begun < 2
