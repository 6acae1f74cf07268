"""How near a probe's forecast comes: `python -m tests.benchmarks.forecast [SWEEP] [--set PATH=VALUE]`.

Plans the sweep with `--probe`, runs it, and compares the wall-clock of the whole command. Exits with 1 where
the forecast is off by more than 30 %. Wants an idle machine, and takes a minute longer than the sweep. The
cache is its own: what earlier sweeps left in the user's would spare this one work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from training.prefix import clear

TOLERANCE = 0.3


def main() -> int:
    """Print one JSON document; the exit code says whether the forecast held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", nargs="?", default="quickstart")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides")
    given = parser.parse_args()
    launch = [sys.executable, str(REPOSITORY / "launch.py")]
    options = [given.sweep, "--set", "tracking.wandb=null"]
    options += [word for override in given.overrides for word in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        storage = ["--storage", str(Path(folder) / "runs")]
        cache = Path(folder) / "cache"
        os.environ["THAW_CACHE"] = str(cache)
        try:
            plan = _document([*launch, "plan", *options, *storage, "--probe", "--json"])
            forecast = plan["forecast"]
            began = time.monotonic()
            subprocess.run([*launch, "run", *options, *storage], check=True, stdout=subprocess.DEVNULL)
            actual_s = time.monotonic() - began
            status = _document([*launch, "status", plan["name"], *storage, "--json"])
        finally:
            clear(cache)
    off = forecast["wall_s"] / actual_s - 1
    print(
        json.dumps(
            {
                "forecast_s": round(forecast["wall_s"], 1),
                "forecast_range_s": [round(forecast["wall_low_s"], 1), round(forecast["wall_high_s"], 1)],
                "actual_s": round(actual_s, 1),
                "off": round(off, 3),
                "forecast_epochs": round(forecast["epochs"], 2),
                "status": status["forecast"],
            },
            indent=2,
        )
    )
    return 0 if abs(off) <= TOLERANCE else 1


def _document(command: list[str]) -> dict[str, Any]:
    """What a command prints as JSON."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


if __name__ == "__main__":
    sys.exit(main())
