"""A job's entry point: runs the sweep's driver, and starts it again when it dies.

`python -m cluster.jobs.supervise [--paused-is-done] COMMAND...`. A new driver goes on from the ledger.

With the option, a sweep that was paused or cancelled counts as done: what runs a failed job again, as
Kubernetes does, would undo that.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

_MAX_RESTARTS = 10
# A driver that ran for so long was not killed by what it met at its start: counting begins anew.
_WELL_S = 600.0
_LOOK_S = 0.2
_PAUSED_IS_DONE = "--paused-is-done"
_DONE, _BAD_INPUT, _INTERRUPTED = 0, 2, 130


def wait_s(code: int, restarts: int) -> float | None:
    """Seconds until the next start; None where there is none.

    Args:
        code: exit code of the driver, negative where a signal killed it.
        restarts: how often it has been started again in a row.
    """
    if code in (_DONE, _BAD_INPUT, _INTERRUPTED) or restarts >= _MAX_RESTARTS:
        return None
    if code == 1 and restarts >= 2:  # it says so itself, and again
        return None
    return min(2.0**restarts, 60.0)


def supervise(command: Sequence[str], *, paused_is_done: bool = False) -> int:
    """Run `command` until it has ended on its own; its exit code, 137 and the like for signals."""
    asked_to_end = False
    running: subprocess.Popen[bytes] | None = None

    def end(number: int, _: FrameType | None) -> None:
        nonlocal asked_to_end
        asked_to_end = True
        if running is not None:
            running.send_signal(number)

    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, end)
    restarts = 0
    while True:
        began = time.monotonic()
        running = subprocess.Popen(command)
        if asked_to_end:  # while it was started
            running.terminate()
        code = running.wait()
        if time.monotonic() - began > _WELL_S:
            restarts = 0
        pause_s = wait_s(code, restarts)
        if code == _INTERRUPTED and paused_is_done and not asked_to_end:
            return _DONE
        if not asked_to_end and pause_s is not None:
            restarts += 1
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            print(f"the driver {how}; started again in {pause_s:g} s", file=sys.stderr, flush=True)
            until = time.monotonic() + pause_s
            while not asked_to_end and time.monotonic() < until:
                time.sleep(_LOOK_S)
        if asked_to_end or pause_s is None:
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    arguments = sys.argv[1:]
    option = arguments[:1] == [_PAUSED_IS_DONE]
    sys.exit(supervise(arguments[option:], paused_is_done=option))
