"""Two sweeps on one cluster of two nodes: the second is let in by the first, and both finish.

python -m tests.benchmarks.sharing [--out F]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.raylets import raylets, small_sweep
from tests.benchmarks.results import tell
from tests.processes import wait_for


def events(storage: Path, name: str) -> list[dict[str, Any]]:
    """What a sweep has told so far."""
    found = []
    with contextlib.suppress(OSError):
        for line in (storage / name / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run it, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    # The first sweep must outlast the start of the second.
    parser.add_argument("--trials", type=int, default=80, help="of the first sweep")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary, raylets(nodes=2) as cluster:
        place = Path(temporary)
        running = {}
        for name, trials in (("first", options.trials), ("second", 1)):
            raw = small_sweep(
                place,
                name,
                training={"epochs": 1, "log_every": 10},
                search={"trials": trials},
                resources={"max_concurrent": "auto"},
            )
            file = place / f"{name}.yaml"
            file.write_text(yaml.safe_dump(raw))
            running[name] = cluster.drive("run", file, "--storage", place, supervised=False)
            if name == "first":
                # It has both nodes by then.
                wait_for(
                    lambda: len([e for e in events(place, "first") if e["kind"] == "log"]) > 2, 300, "a trial"
                )
        logs = {name: process.communicate(timeout=900)[0] for name, process in running.items()}
        at = {name: [e["time"] for e in events(place, name)] for name in running}
        trained = [e["time"] for e in events(place, "second") if e["kind"] == "log"]
        found = {
            "codes": {name: process.returncode for name, process in running.items()},
            "logs": {name: log[-1500:] for name, log in logs.items()},
            "first_s": round(max(at["first"]) - min(at["first"]), 1),
            "second_trained_before_the_first_ended": bool(trained) and min(trained) < max(at["first"]),
            "desks_left": cluster.pids("ray::Desk"),
        }
    tell(found, options.out)
    return found


if __name__ == "__main__":
    main()
