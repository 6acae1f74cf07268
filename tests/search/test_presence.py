"""Who drives a sweep: one process at a time, seen from any other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from search.presence import FILE, Presence, Taken
from search.sweep import Sweep
from tests.conftest import REPOSITORY


def test_a_dead_driver_is_nobody(sweep: Sweep) -> None:
    script = (
        "import os, sys; from pathlib import Path; from search.presence import Presence\n"
        "with Presence(Path(sys.argv[1])).claimed():\n"
        "    print('on', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(sweep.directory)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    presence = Presence(sweep.directory)
    found = presence.driver()
    assert found is not None
    assert found.pid == process.pid
    with pytest.raises(Taken), presence.claimed():
        pass
    process.kill()
    deadline = time.monotonic() + 10
    while presence.driver() is not None:  # even before it is waited for
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.wait()
    with presence.claimed():
        assert presence.driver() is not None
    assert not (sweep.directory / FILE).exists()


def test_a_driver_elsewhere_is_there_as_long_as_it_says_so(sweep: Sweep) -> None:
    def elsewhere(beat: float) -> None:
        stored: dict[str, Any] = {"id": "x", "holder": "other/1 7 9", "host": "other", "pid": 7, "since": 0.0}
        (sweep.directory / FILE).write_text(json.dumps({**stored, "beat": beat}))

    presence = Presence(sweep.directory)
    elsewhere(time.time() - 20)
    assert presence.driver() is not None
    elsewhere(time.time() - 120)
    assert presence.driver() is None
    with presence.claimed():
        assert presence.beat()
        elsewhere(time.time())  # it was only slow, and takes the sweep over again
        assert not presence.beat()
    assert (sweep.directory / FILE).exists()  # it is the other's
