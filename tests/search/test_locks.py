"""The lock on a ledger: held by one, and by nobody who is dead."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from search.locks import FileLock, machine

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


def test_of_two_that_break_a_lock_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees the dead holder before the other has taken the lock away."""
    path = tmp_path / "lock"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.symlink_to(f"{machine()} {ended.pid} x")
    rename, inside, most = os.rename, [0], [0]

    def slowly(source: Any, target: Any) -> None:
        time.sleep(0.3)
        rename(source, target)

    def hold() -> None:
        lock = FileLock(path)
        lock.acquire()
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.6)
        inside[0] -= 1
        lock.release()

    monkeypatch.setattr(os, "rename", slowly)
    holders = [threading.Thread(target=hold) for _ in range(2)]
    for holder in holders:
        holder.start()
        time.sleep(0.1)
    for holder in holders:
        holder.join(30)
    assert (inside, most) == ([0], [1])


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
