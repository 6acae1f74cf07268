"""Two trials on one GPU that is none: `python -m tests.integration.packed DIRECTORY SHARE`.

Ray is told of a GPU that this machine has not, and what stands for its driver's tool says how much memory
it has; workers compute on the CPU. What is printed is the order in which trials began and ended, by the
processes of their workers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import yaml

from tests.benchmarks import marks
from tests.benchmarks.raylets import raylets, small_sweep


def main(place: Path, share: float | str) -> None:
    """Run two trials, at half a core each, on a node with one core and one GPU."""
    raw = small_sweep(
        place,
        "packed",
        training={"epochs": 3, "evaluations_per_epoch": 1},
        resources={"gpus_per_worker": share, "cpus_per_worker": 0.5, "max_concurrent": "auto"},
    )
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(raw))
    tools = place / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text('#!/bin/sh\necho "A GPU, 0, 4096"\n')
    (tools / "nvidia-smi").chmod(0o755)
    os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"
    with marks.marking(place / "marks"), raylets(1, gpus=1) as it:
        log = it.drive("run", file, "--storage", place, supervised=False).communicate()[0]
    told = [m for m in marks.read(place / "marks") if m.text.startswith("trial ")]
    spans = [(m.text.split()[2], m.process) for m in told if m.text.split()[2] in ("taken", "ended")]
    print(json.dumps({"spans": spans, "log": log[-1500:]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if sys.argv[2] == "auto" else float(sys.argv[2]))
