"""The process behind `WandbTracker`: reads events from stdin, and is the only user of wandb.

Events are JSON lines; the answers, on stdout, say where each run is and what went wrong. All
else that wandb and its Go service print goes to stderr, which is a log file.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from search.trackers.base import Seen

_EXIT_CODES = {"failed": 1, "infeasible": 1, "interrupted": 255}  # 255: what wandb gives a Ctrl-C
_ONLINE_AGAIN_S = 300.0  # after a server did not answer
_ORPHANED_S = 8.0  # to finish in when the driver is gone
GRACE_S = 5.0  # after the time of `close` is up: to write offline what is left
_MAX_RESTARTS = 3


class Open:
    """A run that has started and not finished; `handle` is wandb's, once it is needed."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.event = event
        self.handle: Any = None
        self.online = False
        # Beside wandb's files: how far each metric has come, for the run's next start.
        self.path = Path(event["directory"], "wandb", f"{event['id']}.seen.json")
        self.seen = Seen(_load(self.path) if event["resumed"] else None)
        self.again = bool(event["resumed"])
        self.lost = False  # not even offline: its events are passed over


class Writer:
    """Applies events to wandb. `run` is the main thread's; `hurry` comes from another."""

    def __init__(self, options: dict[str, Any], events: queue.SimpleQueue[dict[str, Any]]) -> None:
        self.options = options
        self.events = events
        self.runs: dict[int, Open] = {}
        self.finishing: dict[int, threading.Thread] = {}
        self.mode = options["mode"]
        self.offline_until = 0.0
        self.restarts = 0
        self.touched_server = False  # by the service that runs now

    def run(self) -> None:
        """Applies events until `close`, then ends everything."""
        self.setup()
        if self.mode in ("auto", "online"):
            self.mode = self.online_or_offline()
        while (event := self.events.get())["op"] != "close":
            self.apply(event)
        for trial in list(self.runs):
            self.apply({"op": "finish", "trial": trial, "state": "interrupted"})
        for thread in self.finishing.values():
            thread.join()
        self.teardown()

    def apply(self, event: dict[str, Any]) -> None:
        """One event; where wandb's service died it is started again and the event repeated, offline."""
        while not ((run := self.runs.get(event["trial"])) and run.lost):
            try:
                return getattr(self, event["op"])(event)
            except Exception as error:
                if self.service_runs() or self.restarts == _MAX_RESTARTS:
                    if (run := self.runs.get(event["trial"])) and run.handle is None:
                        run.lost = True
                    return warn(f"W&B: {event['op']} of trial {event['trial']} failed: {_line(error)}")
                self.restarts += 1
                self.offline_until = time.monotonic() + _ONLINE_AGAIN_S
                warn(f"W&B's service ended, runs are written offline: {_line(error)}")
                self.restart()
        return None

    def start(self, event: dict[str, Any]) -> None:
        """Opens a run, once the same trial's earlier one has finished."""
        if event["trial"] in self.runs:  # resumed, and never finished
            return
        if thread := self.finishing.pop(event["trial"], None):
            thread.join()
        self.runs[event["trial"]] = Open(event)
        self.handle(event["trial"])

    def log(self, event: dict[str, Any]) -> None:
        """Adds a row of what is new in it."""
        run = self.runs[event["trial"]]
        handle = self.handle(event["trial"])
        seen = Seen(run.seen.last)
        if fresh := seen.new(event["metrics"], event["examples"]):
            handle.log({**fresh, "examples": event["examples"]})
            run.seen = seen
            run.path.write_text(json.dumps(seen.last))

    def summarize(self, event: dict[str, Any]) -> None:
        """Sets values of the run's summary."""
        self.handle(event["trial"]).summary.update(event["values"])

    def finish(self, event: dict[str, Any]) -> None:
        """In a thread, since it waits for the upload, which other runs should not."""
        trial, state = event["trial"], event["state"]
        handle = self.handle(trial)
        handle.summary["state"] = state
        run = self.runs.pop(trial)

        def wait() -> None:
            try:
                handle.finish(exit_code=_EXIT_CODES.get(state, 0))
            except Exception as error:
                self.offline_until = time.monotonic() + _ONLINE_AGAIN_S
                warn_incomplete(trial, handle, _line(error))
            run.handle = None

        self.finishing[trial] = threading.Thread(target=wait, daemon=True)
        self.finishing[trial].start()

    def handle(self, trial: int) -> Any:
        """wandb's run of a trial, opened now if need be: online if that works, else offline."""
        run = self.runs[trial]
        if run.handle is None:
            online = self.mode == "online" and time.monotonic() >= self.offline_until
            if online:
                self.touched_server = True
                try:
                    run.handle = self.init(run, "online")
                except Exception as error:
                    self.offline_until = time.monotonic() + _ONLINE_AGAIN_S
                    warn(f"W&B cannot be reached, runs are written offline: {_line(error)}")
                    self.restart()  # or the id of the run stays in use for good
                    online = False
            if run.handle is None:
                run.handle = self.init(run, "offline")
            run.online, run.again = online, True
            tell(
                "run", trial=trial, mode="online" if online else "offline",
                url=run.handle.url if online else None, directory=run.handle.settings.sync_dir,
            )  # fmt: skip
        return run.handle

    def init(self, run: Open, mode: Literal["online", "offline"]) -> Any:
        """`wandb.init`, with examples as the axis of every plot."""
        import wandb

        event = run.event
        handle = wandb.init(
            project=self.options["project"], entity=self.options["entity"], tags=self.options["tags"],
            id=event["id"], name=event["name"], group=event["group"], config=event["config"],
            dir=event["directory"], mode=mode, reinit="create_new",
            # Offline it marks the run's second directory as a continuation for `wandb sync`.
            resume="allow" if mode == "online" or run.again else None,
            allow_val_change=True, settings=self.settings(),
        )  # fmt: skip
        handle.define_metric("examples", hidden=True)
        handle.define_metric("*", step_metric="examples")
        return handle

    def settings(self) -> Any:
        """wandb's settings, for the service and for every run."""
        import wandb

        return wandb.Settings(
            init_timeout=self.options["init_timeout_s"],
            finish_timeout=self.options["finish_timeout_s"],
            finish_timeout_raises=True,
            silent=True, quiet=True, show_errors=False, show_warnings=False, show_info=False,
            console="off", symlink=False,
            # Nothing of the machine, the code or the environment leaves it.
            disable_code=True, disable_git=True, save_code=False, disable_job_creation=True,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
            x_save_requirements=False, label_disable=True, program="thaw",
            x_transaction_log_flush_interval=1.0,  # so much may be lost with a killed process
            x_file_stream_transmit_interval=5.0,
        )  # fmt: skip

    def setup(self) -> None:
        """Starts the service."""
        import wandb

        wandb.setup(self.settings()).ensure_service()

    def core(self) -> Any:
        """The handle of wandb's Go process. wandb has no public way to it."""
        import wandb

        service = getattr(getattr(wandb.setup(), "_connection", None), "_proc", None)
        return getattr(service, "_process", None)

    def service_runs(self) -> bool:
        """Whether wandb's service is alive, as far as can be told; one that was just ended gets a moment."""
        process = self.core()
        if process is None:
            return True
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            return True
        return False

    def restart(self) -> None:
        """A fresh service, and no handles on the old one, which is not left time to upload."""
        for trial, run in self.runs.items():
            if run.handle is not None and run.online:
                warn_incomplete(trial, run.handle, "it went offline")
            run.handle = None
        if process := self.core():
            process.terminate()  # it writes to disk what it has
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                process.kill()
        self.teardown()
        self.touched_server = False
        self.setup()

    def teardown(self) -> None:
        """Ends the service and sees it gone."""
        import wandb

        process = self.core()
        try:
            wandb.teardown()
        except Exception as error:  # a service that is gone cannot be told to go
            print(f"teardown: {error!r}", file=sys.stderr)
        if process is not None:
            process.wait(5)

    def hurry(self) -> None:
        """Time is nearly up: whatever waits for the server fails now, and the rest is written offline."""
        self.offline_until = float("inf")
        if self.touched_server and (process := self.core()):
            process.terminate()

    def online_or_offline(self) -> str:
        """Online where wandb itself would find a login. Asks neither the user nor the network."""
        wish = os.environ.get("WANDB_MODE", "")
        if self.mode == "auto" and wish in ("offline", "dryrun"):
            return "offline"
        try:
            found = _login()
        except Exception as error:
            warn(f"W&B login is of no use, runs are written offline: {_line(error)}")
            return "offline"
        if not found and "online" in (self.mode, wish):
            warn("W&B has no key, runs are written offline: set WANDB_API_KEY or call `wandb login`")
        return "online" if found else "offline"


def _login() -> bool:
    import wandb
    from wandb.sdk.lib import wbauth

    found = wbauth.authenticate_session(
        host=wandb.setup().settings.base_url, source="thaw", prompt=False, update_session=False
    )
    return found is not None


def _load(path: Path) -> dict[str, int]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _line(error: BaseException) -> str:
    if type(error).__name__ in ("HandleAbandonedError", "MailboxClosedError", "TimeoutError"):
        return "no answer in time"
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


_answers = threading.Lock()
_stdout: IO[str] = sys.stdout


def tell(kind: str, **rest: Any) -> None:
    """One answer to the driver, which may be gone."""
    with _answers:
        try:
            _stdout.write(json.dumps({"kind": kind, **rest}) + "\n")
            _stdout.flush()
        except OSError:
            pass


def warn(text: str) -> None:
    """One readable line for the driver's `warnings`."""
    tell("warning", text=text)
    print(text, file=sys.stderr, flush=True)


def warn_incomplete(trial: int, handle: Any, why: str) -> None:
    """Says how to send a run that is on disk whole and on the server in part."""
    directory = handle.settings.sync_dir
    warn(f"W&B may lack rows of trial {trial} ({why}); `wandb sync --include-online {directory}` sends them")


def main() -> None:
    """Reads events until `close`, or until the driver is gone."""
    # Whatever wandb or its Go service prints goes to the log.
    global _stdout
    _stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    options = json.loads(sys.argv[1])
    driver = os.getppid()
    events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    writer = Writer(options, events)

    def end(timeout_s: float) -> None:
        # Opening runs offline and writing them takes a second or two: leave room for that.
        after(max(timeout_s / 2, timeout_s - 3.0), writer.hurry)
        after(timeout_s + GRACE_S, os._exit, 3)
        events.put({"op": "close"})

    def read() -> None:
        for line in sys.stdin:
            event = json.loads(line)
            if event["op"] == "close":
                return end(event["timeout_s"])
            events.put(event)
        return end(_ORPHANED_S)

    def watch() -> None:  # a process forked from the driver may hold our input open
        while os.getppid() == driver:
            time.sleep(1.0)
        end(_ORPHANED_S)

    for loop in (read, watch):
        threading.Thread(target=loop, daemon=True).start()
    try:
        import wandb  # noqa: F401
    except Exception as error:
        warn(f"W&B is off: {_line(error)}; `pip install wandb` puts it right")
        tell("off")
        while events.get()["op"] != "close":  # the driver need not know
            pass
        return
    writer.run()


def after(seconds: float, call: Callable[..., object], *args: object) -> None:
    """Calls later, in a thread that does not keep the process."""
    timer = threading.Timer(seconds, call, args)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
