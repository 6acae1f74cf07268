"""What a sweep's driver did, line by line, in `driver.log`; and how that is read, live or afterwards."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search import mirror, vetting
from search.presence import Presence
from search.results.text import number
from search.trackers.jsonl import FILE as METRICS

if TYPE_CHECKING:
    from search.sweep import Sweep

FILE = "driver.log"
_POLL_S = 0.5


class _Handler(logging.FileHandler):
    """Writes lines; one that cannot be written is lost without a word, as the ledger has all that counts."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is None or not Path(self.baseFilename).exists():  # the directory was away
            with contextlib.suppress(OSError):
                self.close()
                self.stream = self._open()
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: see the class."""


@contextlib.contextmanager
def kept(directory: Path) -> Iterator[None]:
    """Write what `search` logs to `driver.log` in the sweep's directory."""
    handler = _Handler(directory / FILE, encoding="utf-8", delay=True)
    formatter = logging.Formatter("%(asctime)sZ %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("search")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.close()


def lines(sweep: Sweep, *, trial: int | None = None, follow: bool = False) -> Iterator[str]:
    """The driver's log, or what one trial reported; with `follow`, on until nobody drives the sweep."""
    presence = Presence(sweep.directory)
    path = sweep.directory / (FILE if trial is None else METRICS)
    offset = 0
    while True:
        driven = follow and presence.driver() is not None
        mirror.pull(sweep.directory)
        for end, line in _whole_lines(path, offset):
            offset = end
            shown = line if trial is None else _event(line, trial)
            if shown is not None:
                yield vetting.shown(shown)
        if not driven:
            return
        time.sleep(_POLL_S)


def _whole_lines(path: Path, offset: int) -> Iterator[tuple[int, str]]:
    """The lines of a file from a byte on, each with the byte behind it; none where there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return  # being written
            offset += len(raw)
            yield offset, raw.decode(errors="replace").rstrip("\n")


def _event(line: str, trial: int) -> str | None:
    """A line of `metrics.jsonl` for people; None where it is not of the trial, or no event."""
    try:
        event = json.loads(line)
        return _told(event) if event["trial"] == trial else None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None


def _told(event: dict[str, Any]) -> str | None:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event["time"]))
    match event["kind"]:
        case "log":
            told = [f"{name} {number(value)}" for name, value in event["metrics"].items()]
            return f"{at} after {event['examples']} examples: {', '.join(told)}"
        case "finish":
            return f"{at} {event['state']}"
        case "start":
            return f"{at} {'goes on' if event['resumed'] else 'starts'}"
        case _:
            return None
