"""When things happened in the processes of a sweep: what Thaw logs for debugging, with times, as files.

Times are of the machine's monotonic clock, which all of its processes share.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PLACE = "THAW_MARKS"
"""Environment variable: the directory that every process writes a file to."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened."""

    at: float
    """Seconds."""
    process: int
    text: str


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        mark(record.getMessage())


def mark(text: str) -> None:
    """Note that something happened now, in this process, if anyone wants to know."""
    if PLACE not in os.environ:
        return
    pid = os.getpid()
    with (Path(os.environ[PLACE]) / f"{pid}.jsonl").open("a") as file:
        file.write(json.dumps({"at": time.monotonic(), "process": pid, "text": text}) + "\n")


def install() -> None:
    """Mark from now on what Thaw logs in this process. Ray calls it in each process of a marked job."""
    for name in ("training", "search", "cluster"):
        logger = logging.getLogger(name)
        logger.addHandler(_Handler())
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


@contextlib.contextmanager
def marking(directory: Path) -> Iterator[None]:
    """Let this process leave marks in `directory`, and those of Ray jobs of it and of its children."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    directory.mkdir(parents=True, exist_ok=True)
    hook = f"{install.__module__}.{install.__name__}"
    settings = {
        PLACE: str(directory),
        RAY_JOB_CONFIG_JSON_ENV_VAR: json.dumps({"runtime_env": {"worker_process_setup_hook": hook}}),
        "PYTHONPATH": str(REPOSITORY),  # the hook is called before Ray has added the driver's own path
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    install()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        for name in ("training", "search", "cluster"):
            logger = logging.getLogger(name)
            logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, _Handler)]


def read(directory: Path) -> list[Mark]:
    """All marks, in order of time."""
    lines = [line for path in directory.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted((Mark(**json.loads(line)) for line in lines), key=lambda found: found.at)
