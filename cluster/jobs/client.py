"""Ray Jobs as Thaw uses them: submit a sweep, follow it, run a command beside it.

Nothing secret is sent: drivers and workers have the keys from their nodes' environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.jobs import environment, remote
from cluster.jobs.package import SWEEP_FILE, Submission, stage

_POLL_S = 0.5
_STORAGE = 'THAW_STORAGE="${THAW_STORAGE:-$HOME/thaw-runs}"'
# Ray ends a job's processes so long after it has asked them to end.
_END_PATIENCE_S = "30"
_ALIVE = ("PENDING", "RUNNING")
# Options that reach the cluster from where the user is, for the hints of what runs there.
_WAY = "THAW_REACHED_BY"
# What Ray takes for the address before the one that it is given.
_BEFORE = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class Jobs:
    """The jobs of the cluster at `address`: http://HOST:PORT, or `auto` in a job for its own cluster.

    Raises:
        ValueError: if none is there, or it asks for a token that is not here.
    """

    def __init__(self, address: str) -> None:
        _use_token()
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        # All of Ray, and two that have a level of their own, tell of every upload.
        for logger in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        try:
            with _obeyed(address):
                self._client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise ValueError(
                f"--address: the cluster at {address} asks for Ray's token; put it into ~/.ray/auth_token or "
                f"name its file in RAY_AUTH_TOKEN_PATH"
            ) from error
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"--address: no Ray dashboard at {address} ({reason}); give the address that `ray dashboard` "
                f"or `kubectl port-forward` opens, such as http://localhost:8265"
            ) from error
        self._address = address

    def check_environment(self) -> None:
        """Check that the cluster's Python can run what would be sent.

        Raises:
            ValueError: with every package that does not fit.
        """
        needed = environment.needed()
        names = [environment.Requirement(text).name for text in needed]
        program = shlex.join(["python", "-c", environment.probe(names)])
        output, _ = self._short(program, {})
        wrong = environment.problems(environment.read(output), needed)
        if wrong:
            lines = "\n".join(f"  {line}" for line in wrong)
            raise ValueError(f"the cluster at {self._address} cannot run this version of Thaw:\n{lines}")

    def submit(self, submission: Submission, storage: str | None, *, patience_s: float = 0.0) -> None:
        """Send a sweep, and start its driver on the head.

        Args:
            patience_s: how long a driver of this sweep that is ending is waited for.

        Raises:
            ValueError: if a sweep of its name is running there, or another job has its name, or it is too
                large to be sent.
        """
        deadline = time.monotonic() + patience_s
        while (earlier := self._status(submission.name)) in _ALIVE and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if earlier is not None and not _is_sweep(self._client.get_job_info(submission.name)):
            raise ValueError(
                f"name: a job {submission.name!r} that is no sweep is on the cluster; give this one another "
                f"name with --set name=..."
            )
        if earlier in _ALIVE:
            raise ValueError(
                f"name: sweep {submission.name!r} is running on the cluster; see `thaw logs "
                f"{submission.name} {self._way(None)} -f`, or give this one another name with --set name=..."
            )
        if earlier is not None:
            self._client.delete_job(submission.name)  # it has ended; the ledger is what counts
        command = (
            f"{_STORAGE} python -m cluster.jobs.supervise "
            f"python launch.py run {SWEEP_FILE}{_option(storage)} --address auto --keep-data"
        )
        with tempfile.TemporaryDirectory() as staged:
            stage(Path(staged), submission)
            self._client.submit_job(
                entrypoint=command,
                submission_id=submission.name,
                runtime_env={
                    "working_dir": staged,
                    "env_vars": {
                        "RAY_JOB_STOP_WAIT_TIME_S": _END_PATIENCE_S,
                        "PYTHONUNBUFFERED": "1",
                        **self._environment(storage),
                    },
                },
                metadata={"thaw": "sweep"},
            )

    def follow(self, name: str) -> int:
        """Print a job's log until it ends; its exit code."""

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(name):
                print(lines, end="", flush=True)

        while self._status(name) == "PENDING":
            time.sleep(_POLL_S)
        # The log may end before the job does, when the connection is cut.
        while True:
            with contextlib.suppress(RuntimeError):
                asyncio.run(tail())
            if self._status(name) not in _ALIVE:
                return self._exit_code(name)
            time.sleep(_POLL_S)

    def log(self, name: str) -> str:
        """What a sweep's job has printed so far.

        Raises:
            ValueError: if there is no such job.
        """
        if self._status(name) is None:
            there = sorted(
                job.submission_id for job in self._client.list_jobs() if job.submission_id and _is_sweep(job)
            )
            raise ValueError(
                f"no sweep {name!r} has been submitted to {self._address}; "
                + (f"there are {', '.join(there)}" if there else "there is none")
            )
        return str(self._client.get_job_logs(name))

    def call(
        self, arguments: Sequence[str], storage: str | None = None, sent: Submission | None = None
    ) -> remote.Answer:
        """Run a command of Thaw on the cluster's head, with the storage as it is seen there.

        Args:
            storage: what `arguments` say of it.
            sent: a sweep whose file is to be beside it.

        Raises:
            OSError: if it could not be run.
        """
        with tempfile.TemporaryDirectory() as staged:
            stage(Path(staged), sent)
            program = f"{_STORAGE} {shlex.join(['python', '-m', 'cluster.jobs.remote', *arguments])}"
            output, message = self._short(
                program, {"working_dir": staged, "env_vars": self._environment(storage)}
            )
        answer = remote.read(output)
        if answer is None:
            raise OSError(f"the command could not be run on {self._address}: {message or output[-300:]}")
        return answer

    def knows(self, name: str) -> bool:
        """Whether there is a sweep's job of this name."""
        return self._status(name) is not None and _is_sweep(self._client.get_job_info(name))

    def _way(self, storage: str | None) -> str:
        """The options by which a command reaches the cluster from where the user is."""
        if self._address == "auto":  # we are there, on the user's behalf
            return os.environ.get(_WAY, "")
        if "@" in self._address:  # a password
            return ""
        return f"--address {self._address}{_option(storage)}"

    def _environment(self, storage: str | None) -> dict[str, str]:
        """What lets a command there say how it is reached."""
        way = self._way(storage)
        return {_WAY: way} if way else {}

    def _short(self, program: str, runtime: dict[str, Any]) -> tuple[str, str]:
        """A job that is waited for and forgotten: what it printed, and Ray's message."""
        name = f"thaw-{uuid.uuid4().hex[:12]}"
        self._client.submit_job(entrypoint=program, submission_id=name, runtime_env=runtime)
        try:
            while self._status(name) in _ALIVE:
                time.sleep(_POLL_S)
            return str(self._client.get_job_logs(name)), self._client.get_job_info(name).message or ""
        finally:
            with contextlib.suppress(RuntimeError):
                if self._status(name) in _ALIVE:  # we were interrupted
                    self._client.stop_job(name)
                else:
                    self._client.delete_job(name)

    def _status(self, name: str) -> str | None:
        try:
            return str(self._client.get_job_status(name).value)
        except RuntimeError as error:
            if "404" in str(error):
                return None
            raise OSError(f"the cluster at {self._address} does not answer: {error}") from error

    def _exit_code(self, name: str) -> int:
        info = self._client.get_job_info(name)
        if info.status.value == "SUCCEEDED":
            return 0
        if info.status.value == "STOPPED":
            return 130
        print(f"error: {info.message}", file=sys.stderr)
        code = info.driver_exit_code
        return code if code in (1, 2, 130) else 1


def _option(storage: str | None) -> str:
    return "" if storage is None else f" --storage {shlex.quote(storage)}"


@contextlib.contextmanager
def _obeyed(address: str) -> Iterator[None]:
    """Let Ray take the address that it is given, whatever the environment says."""
    if address == "auto":
        yield
        return
    hidden = {name: os.environ.pop(name) for name in _BEFORE if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_sweep(job: Any) -> bool:
    return (job.metadata or {}).get("thaw") == "sweep"


def _use_token() -> None:
    """Show Ray's token where there is one; a cluster that asks for none does not mind."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    here = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_TOKEN") or Path(here).is_file():
        os.environ["RAY_AUTH_MODE"] = "token"
