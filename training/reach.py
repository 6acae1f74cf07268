"""A sweep's directory that is out of reach for a while, as a share that is not mounted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from training.store import patience_s

T = TypeVar("T")

# A trial would be lost for nothing else.
PATIENCE_S = 900.0
_LOOK_S = 0.5


def patiently(trial: Path, call: Callable[[], T]) -> T:
    """What `call` returns, which works on a trial's directory; where the sweep's is away, when it is back.

    It is never made anew: what is written then would lie in the way of the one that comes back, and what
    is missing then is not gone.

    Args:
        trial: SWEEP/trials/NUMBER.

    Raises:
        OSError: after all patience, or what `call` raises while the sweep's directory is there.
    """
    sweep = trial.parent.parent
    deadline = time.monotonic() + patience_s(PATIENCE_S)
    while True:
        try:
            os.stat(sweep)  # as what `call` makes on the way would hide that it is away
            return call()
        except (OSError, ValueError):  # as what is cut short is damaged for who reads it
            if os.path.isdir(sweep) or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)
