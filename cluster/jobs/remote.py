"""A command of Thaw run on the cluster for somebody elsewhere: what it says comes back whole.

`python -m cluster.jobs.remote ARGUMENTS...` prints one line that `read` takes apart: a job's log does
not tell standard output from standard error.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import asdict, dataclass

_PREFIX = "thaw-answer "


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str


def line(answer: Answer) -> str:
    """An answer on one line."""
    return _PREFIX + base64.b64encode(json.dumps(asdict(answer)).encode()).decode()


def read(output: str) -> Answer | None:
    """The answer among the lines of a job's log; None if there is none."""
    for text in output.splitlines():
        if text.startswith(_PREFIX):
            return Answer(**json.loads(base64.b64decode(text.removeprefix(_PREFIX))))
    return None


if __name__ == "__main__":
    ended = subprocess.run(
        [sys.executable, "launch.py", *sys.argv[1:]], capture_output=True, text=True, check=False
    )
    print(line(Answer(code=ended.returncode, out=ended.stdout, err=ended.stderr)), flush=True)
