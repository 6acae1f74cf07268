"""How long a trial takes to start, cold and on a warm gang, under Thaw and under the documented stack.

    python -m tests.benchmarks.switch [--trials 20] [--rival 3] [--gpu] [--out FILE]

Thaw runs a sweep of MiniLM-L6 on the bundled movie sentences as its command line does: driver, ledger, Ray
Tune, one gang of one worker, schedules in turn, one short epoch each. A switch is from the end of one trial
(the worker is through with it) to the end of the next one's first optimizer step; the cold start is from the
connection to Ray to the first step of all. Trials that fill the prefix store (the first of each schedule)
are left out of the switches: that is paid once for all trials of a node.

The documented stack (`sides/stack.py`) trains all of the model on as many sentences. Both run one trial at a
time on one core, or with --gpu on a GPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.marks import Mark, marking, read
from tests.benchmarks.raylets import small_sweep
from tests.benchmarks.results import machine, tell
from tests.benchmarks.sides import stack
from tests.benchmarks.workloads import job

TARGET_S = 0.3
SCHEDULES = ("head", "top", "gradual", "full")
SHARES = ("worker to ledger", "ledger and draw", "Ray Tune to worker", "restore", "engine", "first step")


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a trial came to its first step."""

    trial: int
    seconds: float
    shares: Mapping[str, float]
    """Seconds of each part, in order; they add up to `seconds`."""


def _at(marks: Sequence[Mark], text: str, after: float = 0.0) -> float:
    """When something happened first, from `after` on.

    Raises:
        ValueError: if it did not.
    """
    for found in marks:
        if found.at >= after and found.text.startswith(text):
            return found.at
    raise ValueError(f"no mark {text!r} after {after}")


def _parts(names: Sequence[str], times: Sequence[float]) -> dict[str, float]:
    return {name: b - a for name, a, b in zip(names, times, times[1:], strict=False)}


def switches(marks: Sequence[Mark], without: int = 0) -> list[Start]:
    """From the end of each trial to the first step of the next, on one gang.

    Args:
        without: how many trials at the beginning do not count.
    """
    taken = [m for m in marks if m.text.startswith("trial ") and m.text.endswith(" taken")]
    found = []
    for before, now in zip(taken[without:], taken[without + 1 :], strict=False):
        last, trial = before.text.split()[1], now.text.split()[1]
        ended = _at(marks, f"trial {last} ended", before.at)
        closed = _at(marks, f"trial {last}: ", ended)
        handed = _at(marks, f"trial {trial} starts", closed)
        restored = _at(marks, "restored", now.at)
        built = _at(marks, "engine", restored)
        stepped = _at(marks, "step", built)
        times = (ended, closed, handed, now.at, restored, built, stepped)
        found.append(Start(trial=int(trial), seconds=stepped - ended, shares=_parts(SHARES, times)))
    return found


def cold_start(marks: Sequence[Mark]) -> Start:
    """From the connection to Ray to the first step of all."""
    times = [_at(marks, "connected")]
    for text in (
        "gang asked for",
        "worker started",
        "worker ready",
        "trial 0 taken",
        "restored",
        "engine",
        "step",
    ):
        times.append(_at(marks, text, times[-1]))
    names = (
        "driver and Ray Tune",
        "Ray Train",
        "imports",
        "first order",
        "model and data",
        "engine",
        "first step",
    )
    return Start(trial=0, seconds=times[-1] - times[0], shares=_parts(names, times))


def summary(starts: Sequence[Start]) -> dict[str, Any]:
    """Median, ninth decile and worst of the seconds, and the median of each share."""
    seconds = sorted(start.seconds for start in starts)
    return {
        "starts": len(starts),
        "median_s": statistics.median(seconds),
        "p90_s": seconds[-(-9 * len(seconds) // 10) - 1],
        "worst_s": seconds[-1],
        "shares_s": {
            name: statistics.median(start.shares[name] for start in starts) for name in starts[0].shares
        },
    }


def thaw(trials: int, place: Path, gpus: int = 0) -> list[Mark]:
    """Run a sweep by the command line, in this process; what was marked."""
    import launch

    raw = small_sweep(
        place,
        "switch",
        task={"max_length": 64},
        training={
            "epochs": 1,
            "evaluations_per_epoch": 1,
            "log_every": 10,
            "unfreezing": {"schedule": "head"},
        },
        parameters={"unfreezing.schedule": {"values": list(SCHEDULES)}, "learning_rate": {"values": [1e-4]}},
        resources={"gpus_per_worker": gpus},
        search={
            "trials": len(SCHEDULES) + 1 + trials,
            "duplicates": "allow",
            "default_points": False,
            # The first of each; what comes then is drawn.
            "points": [{"unfreezing.schedule": schedule} for schedule in SCHEDULES],
        },
    )
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(raw))
    with marking(place / "marks"):
        launch.app(["run", str(file), "--storage", str(place)], standalone_mode=False)
    return read(place / "marks")


def documented(trials: int, place: Path, gpus: int = 0) -> list[Mark]:
    """The documented stack's trials, one after the other; what was marked."""
    given = job(
        "w3", trials=trials, examples=160, validated=60, precision="fp32", processes=1, gpus=float(gpus)
    )
    # Of one size, that of Thaw's: the median is of few.
    given = replace(given, tasks=tuple(replace(task, batch_size=16) for task in given.tasks))
    os.environ["RAY_TRAIN_METRICS_ENABLED"] = "0"
    with marking(place / "marks"):
        stack.run(given)
    return read(place / "marks")


def rival_starts(marks: Sequence[Mark]) -> tuple[Start, list[Start]]:
    """The first trial of the documented stack from the connection to Ray, the others from the last's end."""
    names = ("Ray", "imports", "model and data", "engine", "first step")
    began, number, found = _at(marks, "connected"), 0, []
    while any(m.text == f"trial {number} ended" for m in marks):
        times = [began]
        for text in (f"worker of trial {number} started", "imported", "loaded", "engine", "step"):
            times.append(_at(marks, text, times[-1]))
        found.append(Start(trial=number, seconds=times[-1] - began, shares=_parts(names, times)))
        began = _at(marks, f"trial {number} ended")
        number += 1
    return found[0], found[1:]


def table(found: Mapping[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'seconds':<28} {'median':>8} {'p90':>8} {'worst':>8}"]
    for name in ("thaw warm", "documented warm"):
        if (row := found.get(name)) is not None:
            lines.append(f"{name:<28} {row['median_s']:>8.3f} {row['p90_s']:>8.3f} {row['worst_s']:>8.3f}")
            lines += [f"  {share:<26} {seconds:>8.3f}" for share, seconds in row["shares_s"].items()]
    for name in ("thaw cold", "documented cold"):
        if (row := found.get(name)) is not None:
            lines.append(f"{name:<28} {row['seconds']:>8.3f}")
            lines += [f"  {share:<26} {seconds:>8.3f}" for share, seconds in row["shares"].items()]
    if "ratio" in found:
        lines.append(
            f"documented / thaw: warm {found['ratio']['warm']:.0f}, cold {found['ratio']['cold']:.1f}"
        )
    lines.append(f"target: a warm start in less than {TARGET_S} s (median)")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument(
        "--rival", type=int, default=3, help="warm trials of the documented stack; 0: leave it out"
    )
    parser.add_argument("--gpu", action="store_true", help="train on a GPU")
    parser.add_argument("--out", type=Path, default=None, help="also write the JSON there")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found: dict[str, Any] = {"target_s": TARGET_S, "machine": machine(gpu=options.gpu)}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        os.environ.setdefault("THAW_CACHE", str(place / "cache"))
        (place / "thaw").mkdir()
        began = time.monotonic()
        marks = thaw(options.trials, place / "thaw", int(options.gpu))
        warm = switches(marks, without=len(SCHEDULES))
        found |= {
            "thaw warm": summary(warm),
            "thaw cold": asdict(cold_start(marks)),
            "thaw starts": [asdict(start) for start in warm],
            "thaw sweep_s": time.monotonic() - began,
        }
        if options.rival:
            cold, rest = rival_starts(documented(options.rival + 1, place / "rival", int(options.gpu)))
            found |= {"documented cold": asdict(cold), "documented warm": summary(rest)}
            found["ratio"] = {
                "warm": found["documented warm"]["median_s"] / found["thaw warm"]["median_s"],
                "cold": cold.seconds / found["thaw cold"]["seconds"],
            }
    tell(found, options.out, table(found))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
