"""Weights & Biases: one run a trial, written by a process of its own.

The driver only puts events on a queue; a daemon thread hands them to `wandb_process`, which is
the one place that imports wandb. A process, because wandb in the driver would replace `sys.exit`
and `sys.excepthook`, put WANDB_SERVICE where Ray's workers inherit it, print the panics of its
Go service into the live table, and hold up the exit. Should the driver be killed, the process
sees its input end, finishes the runs and exits.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from search import mirror
from search.trackers.base import Run, Value, WandbConfig, jsonable
from search.trackers.wandb_login import key_in

# Left in the environment, they would direct every run of the sweep to one place.
_FOREIGN = (
    "WANDB_SERVICE",
    "WANDB_RUN_ID",
    "WANDB_RESUME",
    "WANDB_SWEEP_ID",
    "WANDB_RUN_GROUP",
    "WANDB_NAME",
)

_MAX_WARNINGS = 100


class WandbTracker:
    """See the module. `urls`, `directories` and `modes` tell by trial where its run is."""

    def __init__(
        self,
        settings: WandbConfig | None = None,
        *,
        init_timeout_s: float = 15.0,
        finish_timeout_s: float = 30.0,
    ) -> None:
        """Starts nothing yet: the process starts with the first run.

        Args:
            settings: Project, entity, mode and tags.
            init_timeout_s: How long the server may take to accept a run; then the run is
                written offline.
            finish_timeout_s: How long the upload of what is left may take at the end of a run.
        """
        self.settings = settings or WandbConfig()
        self.urls: dict[int, str] = {}
        self.directories: dict[int, str] = {}
        self.modes: dict[int, str] = {}
        self.warnings: list[str] = []
        self._init_timeout_s = init_timeout_s
        self._finish_timeout_s = finish_timeout_s
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._threads: list[threading.Thread] = []
        self._groups: dict[int, str] = {}
        self._directory: Path | None = None
        self._disabled = self.settings.mode == "disabled" or (
            self.settings.mode == "auto" and os.environ.get("WANDB_MODE") == "disabled"
        )
        self._closed = False

    def start(self, run: Run) -> None:
        """See `Tracker`."""
        if self._disabled or self._closed:
            return
        if not self._threads:
            self._begin(run.directory)
        self._groups[run.trial] = run.sweep
        self._put(
            "start", run.trial, id=run.id, name=run.name, group=run.sweep,
            config=jsonable(run.config, words=False),  # as it is now
            directory=str(run.directory.absolute()), resumed=run.resumed,
        )  # fmt: skip

    def log(self, trial: int, metrics: Mapping[str, Value], *, examples: int) -> None:
        """See `Tracker`."""
        self._put("log", trial, metrics=dict(metrics), examples=examples)

    def summarize(self, trial: int, values: Mapping[str, Value]) -> None:
        """See `Tracker`."""
        self._put("summarize", trial, values=dict(values))

    def finish(self, trial: int, state: str) -> None:
        """See `Tracker`."""
        self._put("finish", trial, state=state)

    def close(self, timeout_s: float) -> None:
        """See `Tracker`. Uploads until about half the time is spent, then writes the rest offline.

        Where even that takes longer, this returns all the same, and the process, which holds every
        event by then, goes on for at most `wandb_process.GRACE_S` seconds.
        """
        if self._closed:
            return
        deadline = time.monotonic() + timeout_s
        self._put("close", -1, timeout_s=timeout_s)
        self._closed = True
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self.warnings.append(
                f"W&B did not finish within {timeout_s:g} s; its process writes the rest offline, then ends"
            )
        elif self._process is not None and self._process.returncode:
            self.warnings.append(
                f"W&B's process ended with code {self._process.returncode}; {self._log_hint()}"
            )

    def locations(self) -> list[str]:
        """The sweep's page when runs are online, and the directory of those that are not."""
        places: dict[str, None] = {}
        for trial in sorted(self.modes):
            if self.modes[trial] == "online" and trial in self.urls:
                project = self.urls[trial].rsplit("/runs/", 1)[0]
                places[f"{project}/groups/{quote(self._groups[trial], safe='')}/workspace"] = None
            else:
                places[mirror.shown(Path(self.directories[trial]).parent)] = None
        if not places and self._directory is not None:  # no run has said yet where it is
            places[mirror.shown(self._directory / "wandb")] = None
        return list(places)

    def _put(self, op: str, trial: int, **rest: Any) -> None:
        if self._threads and not self._closed:
            self._queue.put({"op": op, "trial": trial, **rest})

    def _begin(self, directory: Path) -> None:
        write = threading.Thread(target=self._write, args=(directory,), name="wandb-write", daemon=True)
        self._threads = [write]
        self._directory = directory
        write.start()

    def _write(self, directory: Path) -> None:
        """Runs the process, hands it the events, and waits for its end."""
        try:
            process = self._process = self._launch(directory)
        except (OSError, ValueError) as error:
            self.warnings.append(f"W&B is off: its process does not start ({error})")
            self._disabled = True
            return
        assert process.stdin is not None
        assert process.stdout is not None
        read = threading.Thread(target=self._read, args=(process.stdout,), name="wandb-read", daemon=True)
        read.start()
        try:
            while True:
                event = self._queue.get()
                process.stdin.write(json.dumps(jsonable(event, words=False)) + "\n")
                process.stdin.flush()
                if event["op"] == "close":
                    process.stdin.close()
                    break
        except OSError:  # it has ended, and said why or will be missed below
            pass
        code = process.wait()
        read.join()
        if code != 0 and not self._closed:
            self._closed = True
            self.warnings.append(f"W&B is off: its process ended with code {code}; {self._log_hint()}")

    def _launch(self, directory: Path) -> subprocess.Popen[str]:
        options = {
            "project": self.settings.project,
            "entity": self.settings.entity,
            "mode": self.settings.mode,
            "tags": list(self.settings.tags),
            "init_timeout_s": self._init_timeout_s,
            "finish_timeout_s": self._finish_timeout_s,
        }
        root = str(Path(__file__).absolute().parents[2])
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))
        environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        environment |= {"PYTHONPATH": path, "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
        if self.settings.api_key_file is not None:
            environment["WANDB_API_KEY"] = key_in(self.settings.api_key_file)
        environment.setdefault("WANDB_ERROR_REPORTING", "false")  # which goes out in offline mode, too
        (directory / "wandb").mkdir(parents=True, exist_ok=True)
        with (directory / "wandb" / "writer.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "search.trackers.wandb_process", json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
                text=True, encoding="utf-8", start_new_session=True,  # Ctrl-C is for the driver
            )  # fmt: skip

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            said = json.loads(line)
            match said["kind"]:
                case "run":
                    self.modes[said["trial"]] = said["mode"]
                    self.directories[said["trial"]] = said["directory"]
                    if said["url"]:
                        self.urls[said["trial"]] = said["url"]
                case "off":
                    self._directory = None
                case "warning":
                    if said["text"] not in self.warnings and len(self.warnings) < _MAX_WARNINGS:
                        self.warnings.append(said["text"])

    def _log_hint(self) -> str:
        return f"see {self._directory / 'wandb' / 'writer.log'}" if self._directory else "it left no log"
