"""`metrics.jsonl` in the sweep's directory: every event a line of strict JSON.

The keys of a line: `time` (seconds since 1970), `trial`, `kind` (start, log, summary, finish),
and then `id`, `name`, `config`, `resumed`; or `examples`, `metrics`; or `values`; or `state`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from search.trackers.base import JsonlConfig, Run, Seen, Value, dumps

FILE = "metrics.jsonl"


class JsonlTracker:
    """Appends events to `metrics.jsonl`, flushed line by line, so that a reader can follow along."""

    def __init__(self, settings: JsonlConfig | None = None) -> None:
        """Opens nothing yet: the file is opened with the first run."""
        self.warnings: list[str] = []
        self._files: dict[Path, IO[str]] = {}
        self._runs: dict[int, tuple[Path, Seen]] = {}

    def start(self, run: Run) -> None:
        """See `Tracker`."""
        path = run.directory / FILE
        seen = Seen(_last_examples(path, run.trial) if run.resumed else None)
        self._runs[run.trial] = (path, seen)
        if path not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = path.open("a", encoding="utf-8")
            _end_torn_line(path, self._files[path])
        self._write(run.trial, "start", id=run.id, name=run.name, config=run.config, resumed=run.resumed)

    def log(self, trial: int, metrics: Mapping[str, Value], *, examples: int) -> None:
        """See `Tracker`."""
        if fresh := self._runs[trial][1].new(metrics, examples):
            self._write(trial, "log", examples=examples, metrics=fresh)

    def summarize(self, trial: int, values: Mapping[str, Value]) -> None:
        """See `Tracker`."""
        self._write(trial, "summary", values=values)

    def finish(self, trial: int, state: str) -> None:
        """See `Tracker`."""
        self._write(trial, "finish", state=state)

    def close(self, timeout_s: float) -> None:
        """See `Tracker`. Every line is on disk already."""
        while self._files:
            self._files.popitem()[1].close()

    def locations(self) -> list[str]:
        """The file, once there is one."""
        return sorted({str(path) for path, _ in self._runs.values()})

    def _write(self, trial: int, kind: str, **rest: Any) -> None:
        file = self._files[self._runs[trial][0]]
        file.write(dumps({"time": round(time.time(), 3), "trial": trial, "kind": kind, **rest}) + "\n")
        file.flush()


def _last_examples(path: Path, trial: int) -> dict[str, int]:
    """How far each metric of the trial stands in the file; lines cut off by a crash are passed over."""
    last: dict[str, int] = {}
    if not path.exists():
        return last
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["trial"] == trial and event["kind"] == "log":
                for name in event["metrics"]:
                    last[name] = max(last.get(name, -1), event["examples"])
    return last


def _end_torn_line(path: Path, file: IO[str]) -> None:
    """A driver killed in the middle of a line must not spoil the next one."""
    with path.open("rb") as raw:
        if raw.seek(0, 2) and raw.seek(-1, 2) is not None and raw.read(1) != b"\n":
            file.write("\n")
            file.flush()
