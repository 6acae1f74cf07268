"""A driver's log: what it says, and how it is followed."""

from __future__ import annotations

import json
import threading
import time

from search import logbook
from search.life import SweepState
from search.presence import Presence
from search.sweep import Sweep, find
from tests.cli import Thaw
from tests.search.steered import driver_of, through


def test_the_log_tells_what_the_driver_did(thaw: Thaw, sweep: Sweep) -> None:
    with logbook.kept(sweep.directory):
        driver = driver_of(sweep)
        through(driver)
    text = thaw("logs", "s").out
    assert "trial 0 starts: {'learning_rate': " in text
    assert "trial 2: epoch 4, eval/accuracy 0.524" in text
    assert "trial 2: complete" in text
    assert json.loads(thaw("logs", "s", "--json").out) == text.splitlines()
    assert find("s", sweep.directory.parent).state() is SweepState.FINISHED


def test_a_log_steers_no_terminal_and_what_is_no_event_is_passed_over(thaw: Thaw, sweep: Sweep) -> None:
    (sweep.directory / logbook.FILE).write_text("2026 \x1b[2Jgone\n")
    assert thaw("logs", "s").out == "2026 \N{REPLACEMENT CHARACTER}[2Jgone\n"
    driver = driver_of(sweep)
    through(driver)
    good = {"time": 0, "trial": 0, "kind": "log", "examples": 3, "metrics": {"a\x1b[2J": 0.5}}
    bad = ["[]", "{}", '{"trial": 0}', "3", '{"trial": 0, "kind": "log", "time": 1e300}', "[" * 100_000]
    (sweep.directory / "metrics.jsonl").write_text("\n".join([*bad, json.dumps(good), ""]))
    ended = thaw("logs", "s", "--trial", "0")
    assert ended.code == 0, ended.err
    assert ended.out == "1970-01-01T00:00:00Z after 3 examples: a\N{REPLACEMENT CHARACTER}[2J 0.5\n"


def test_the_log_is_followed_until_nobody_drives_the_sweep(sweep: Sweep) -> None:
    log = sweep.directory / logbook.FILE
    log.write_text("first\n")
    seen: list[str] = []
    presence = Presence(sweep.directory)
    with presence.claimed():
        following = threading.Thread(target=lambda: seen.extend(logbook.lines(sweep, follow=True)))
        following.start()
        with log.open("a") as file:
            file.write("sec")
            file.flush()
            time.sleep(1.0)
            file.write("ond\n")
        assert following.is_alive()
    following.join(timeout=30)
    assert seen == ["first", "second"]
