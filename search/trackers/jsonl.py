"""`metrics.jsonl` in the sweep's directory: every event a line of strict JSON.

The keys of a line: `time` (seconds since 1970), `trial`, `kind` (start, log, summary, finish),
and then `id`, `name`, `config`, `resumed`; or `examples`, `metrics`; or `values`; or `state`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from search import mirror
from search.trackers.base import JsonlConfig, Run, Seen, Value, dumps

FILE = "metrics.jsonl"


class JsonlTracker:
    """Appends events to `metrics.jsonl`, flushed line by line, so that a reader can follow along.

    What cannot be written waits in memory, and goes in before the next line that can.
    """

    def __init__(self, settings: JsonlConfig | None = None) -> None:
        """Opens nothing yet: the file is opened with the first run."""
        self.warnings: list[str] = []
        self._files: dict[Path, IO[str]] = {}
        self._runs: dict[int, tuple[Path, Seen]] = {}
        self._waiting: dict[Path, str] = {}
        self._known: dict[Path, dict[int, dict[str, int]]] = {}

    def start(self, run: Run) -> None:
        """See `Tracker`."""
        path = run.directory / FILE
        if path not in self._waiting:  # but not anew: a directory that is out of reach comes back
            path.parent.mkdir(parents=True, exist_ok=True)
            self._waiting[path] = ""
        if run.trial not in self._runs:
            seen = Seen(self._earlier(path).get(run.trial) if run.resumed else None)
            self._runs[run.trial] = (path, seen)
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
        """See `Tracker`. Every line is on disk already, unless the disk is out of reach."""
        for path in self._waiting:
            if not self._flushed(path):
                self.warnings.append(f"{path} cannot be written; the last events are not in it")
        while self._files:
            self._files.popitem()[1].close()

    def locations(self) -> list[str]:
        """The file, once there is one."""
        return sorted({mirror.shown(path) for path, _ in self._runs.values()})

    def _earlier(self, path: Path) -> dict[int, dict[str, int]]:
        """How far drivers before this one came in the file; read once, since it grows with the sweep."""
        if path not in self._known and path.exists():
            self._known[path] = _last_examples(path)
        return self._known.get(path, {})

    def _write(self, trial: int, kind: str, **rest: Any) -> None:
        path = self._runs[trial][0]
        event = {"time": round(time.time(), 3), "trial": trial, "kind": kind, **rest}
        self._waiting[path] += dumps(event) + "\n"
        self._flushed(path)

    def _flushed(self, path: Path) -> bool:
        """Write what waits; whether that could be done."""
        if not self._waiting[path]:
            return True
        try:
            if path not in self._files:
                self._files[path] = path.open("a", encoding="utf-8")
                _end_torn_line(path, self._files[path])
            self._files[path].write(self._waiting[path])
            self._files[path].flush()
        except OSError:
            if path in self._files:
                with suppress(OSError):
                    self._files.pop(path).close()
            return False
        self._waiting[path] = ""
        return True


def open_runs(directory: Path) -> set[int]:
    """The trials of a sweep whose runs were started and not finished: a driver died meanwhile."""
    found: set[int] = set()
    path = directory / FILE
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if '"kind": "start"' in line or '"kind": "finish"' in line:
                    with suppress(ValueError, KeyError):
                        event = json.loads(line)
                        (found.add if event["kind"] == "start" else found.discard)(event["trial"])
    return found


def _last_examples(path: Path) -> dict[int, dict[str, int]]:
    """How far each metric of each trial stands in the file; lines cut off by a crash are passed over."""
    last: dict[int, dict[str, int]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, LookupError, TypeError):  # of what is no event
                event = json.loads(line)
                if event["kind"] == "log":
                    of_trial = last.setdefault(event["trial"], {})
                    for name in event["metrics"]:
                        of_trial[name] = max(of_trial.get(name, -1), event["examples"])
    return last


def _end_torn_line(path: Path, file: IO[str]) -> None:
    """A driver killed in the middle of a line must not spoil the next one."""
    with path.open("rb") as raw:
        if raw.seek(0, 2) and raw.seek(-1, 2) is not None and raw.read(1) != b"\n":
            file.write("\n")
            file.flush()
