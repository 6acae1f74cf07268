"""Thaw: the job as a sweep file, run by `thaw run` as a user would, into a folder of its own.

    python -m tests.benchmarks.sides.thaw JOB OUT [FOLDER]

What is cached is in FOLDER too, so the store of frozen states is built within the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.benchmarks.jobs import Job, parse
from tests.benchmarks.workloads import sweep_file
from tests.conftest import REPOSITORY

NAME = "bench"


def run(job: Job, folder: Path) -> None:
    """All trials of a job; the sweep stays in `folder`/runs/bench.

    Raises:
        RuntimeError: where it failed.
    """
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_file(job, NAME)))
    ended = subprocess.run(
        [sys.executable, "launch.py", "run", str(file), "--storage", str(folder / "runs")],
        cwd=REPOSITORY,
        env={**os.environ, "THAW_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode != 0:
        raise RuntimeError(ended.stdout[-2000:])


def results(job: Job, folder: Path) -> list[dict[str, float]]:
    """What its ledger says of each trial.

    Raises:
        RuntimeError: where they are not the trials of the job.
    """
    from search.study import Study

    found = []
    for record in Study.read(folder / "runs" / NAME / "study.journal").trials():
        task = job.tasks[record.number]
        drawn = [record.params[name] for name in ("unfreezing.schedule", "learning_rate", "batch_size")]
        if record.seed != task.seed or drawn != [task.schedule, task.learning_rate, task.batch_size]:
            raise RuntimeError(f"trial {record.number} is not that of the job: {record.params}")
        if record.last is None:
            raise RuntimeError(f"trial {record.number} {record.state}: {record.error}")
        metrics = record.last.metrics
        found.append(
            {"number": record.number, "accuracy": metrics["eval/accuracy"], "seconds": record.last.seconds}
        )
    return found


def clear(folder: Path) -> None:
    """Give back what the store holds in memory."""
    from training.prefix import clear as clear_store

    clear_store(folder / "cache")


def main() -> None:
    """Run the job; the clock runs from the start of `thaw run` to its end."""
    job = parse(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory(prefix="thaw-bench-") as scratch:
        folder = Path(sys.argv[3] if len(sys.argv) > 3 else scratch)
        began = time.time()
        try:
            run(job, folder)
            ended = time.time()
            found = results(job, folder)
        finally:
            clear(folder)
    Path(sys.argv[2]).write_text(json.dumps({"began": began, "ended": ended, "trials": found}))


if __name__ == "__main__":
    main()
