"""Two trials on one GPU that is none: `python -m tests.integration.packed DIRECTORY`, in its own process.

Ray is told of a GPU that this machine has not; workers compute on the CPU, over gloo, not NCCL. What is
printed is the order in which trials began and ended, by the processes of their workers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks import marks


def install() -> None:
    """Mark what happens, and use gloo where a worker has a GPU. Called in every process of Ray."""
    marks.install()
    from ray.train.torch.config import TorchConfig, _TorchBackend

    start = _TorchBackend.on_start

    def on_start(self: _TorchBackend, group: Any, config: TorchConfig) -> None:
        config.backend = "gloo"
        start(self, group, config)

    _TorchBackend.on_start = on_start  # type: ignore[method-assign]


def main(place: Path) -> None:
    """Run two trials at half a GPU and half a core each, on a node with one of both."""
    # Not at the top: what `install` is called in has no use for it.
    import yaml

    from tests.benchmarks.raylets import raylets, small_sweep

    raw = small_sweep(
        place,
        "packed",
        training={"epochs": 3, "evaluations_per_epoch": 1},
        resources={"gpus_per_worker": 0.5, "cpus_per_worker": 0.5, "max_concurrent": "auto"},
    )
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(raw))
    with (
        marks.marking(place / "marks", hook="tests.integration.packed.install"),  # __main__ here
        raylets(1, gpus=1) as it,
    ):
        log = it.drive("run", file, "--storage", place, supervised=False).communicate()[0]
    told = [m for m in marks.read(place / "marks") if m.text.startswith("trial ")]
    spans = [(m.text.split()[2], m.process) for m in told if m.text.split()[2] in ("taken", "ended")]
    print(json.dumps({"spans": spans, "log": log[-1500:]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
