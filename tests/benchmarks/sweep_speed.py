"""How long a whole sweep takes: Thaw, the documented stack, and the strongest plain rival.

    python -m tests.benchmarks.sweep_speed [--workloads w1 w2 w3] [--precision fp32 bf16]
        [--sides stack trainer thaw] [--trials 24] [--examples 1000] [--processes 4 --gpus 0.25] [--out FILE]

Every side runs the same fixed list of trials (`workloads.py`): MiniLM-L6 for one epoch over the first
1,000 bundled movie sentences, batch 16 and 32, evaluated once, none stopped early; w1 mixes head, top-1,
top-2, gradual and full, w2 has the first three, w3 full alone. Sides are in `sides/`, each a process of its
own that runs as many trials at a time as there are cores, one thread each; with --gpus each trial has that
share of a GPU. The clock runs from a cold start to the end of the process: loading and Thaw's building of its
store count, and so do the checkpoints that it writes and exports, and the rivals do not. Sides run one after
another. With --out each finished side is kept, and a run that was cut off goes on after it, unless on another
machine or after a reboot. Wants an idle machine, and well over an hour for all of fp32 on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.jobs import Job, dump
from tests.benchmarks.raylets import Marked
from tests.benchmarks.results import machine
from tests.benchmarks.workloads import WORKLOADS, arithmetic, job, mean
from tests.conftest import MODEL, REPOSITORY
from tests.processes import cpu_s

SIDES = ("stack", "trainer", "thaw")
TARGETS = {
    "w1": {"stack": 4.0, "trainer": 1.4},
    "w2": {"stack": 6.0, "trainer": 2.0},
    "w3": {"stack": 2.0, "trainer": 1.05},
}
"""Seconds of a rival over Thaw's: at least that in fp32, more than that in bf16."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_SAMPLE_S = 1.0
_LIBRARIES = "import torch, ray.tune, ray.train.torch, transformers, deepspeed, optuna, accelerate"
# Left by whoever was a worker in this process: Trainer would look for its gang.
_OF_WORKERS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


class Cpu:
    """Adds up the CPU time of marked processes, which other work on the machine does not change much."""

    def __init__(self, marked: Marked) -> None:
        self._marked = marked
        self._seen: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            for pid in self._marked.processes():
                if pid != os.getpid():
                    with contextlib.suppress(OSError):
                        self._seen[pid] = cpu_s(pid)

    def end(self) -> float:
        """Seconds, but for the last of each process."""
        self._ended.set()
        self._thread.join()
        return sum(self._seen.values())


def measure(given: Job, side: str, limit_s: float, folder: Path | None = None) -> dict[str, Any]:
    """Run one side of a job.

    Args:
        folder: where Thaw's sweep is to stay.

    Raises:
        RuntimeError: where it failed or took longer than `limit_s`.
    """
    # The disk's cache is warm for all sides, whoever comes first.
    subprocess.run([sys.executable, "-c", _LIBRARIES], check=True, stderr=subprocess.DEVNULL)
    marked = Marked(side)
    with tempfile.TemporaryDirectory(prefix="thaw-bench-") as temporary:
        place = Path(temporary)
        (place / "job.json").write_text(dump(given))
        command = [sys.executable, "-m", f"tests.benchmarks.sides.{side}"]
        load, cpu = os.getloadavg(), Cpu(marked)
        running = subprocess.Popen(
            [*command, str(place / "job.json"), str(place / "out.json"), *([str(folder)] if folder else [])],
            cwd=REPOSITORY,
            env={
                **{name: value for name, value in os.environ.items() if name not in _OF_WORKERS},
                "PYTHONPATH": str(REPOSITORY),
            },
            stdout=(place / "log").open("w"),
            stderr=subprocess.STDOUT,
        )
        try:
            code: int | str = running.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = f"not done after {limit_s:g} s"
        finally:
            cpu_s = cpu.end()
            marked.kill()
            running.wait()
        if code != 0:
            raise RuntimeError(f"{side}: {code}\n{(place / 'log').read_text()[-3000:]}")
        found = json.loads((place / "out.json").read_text())
    trials = sorted(found["trials"], key=lambda trial: trial["number"])
    assert [trial["number"] for trial in trials] == list(range(len(given.tasks))), trials
    return {
        "seconds": round(found["ended"] - found["began"], 2),
        "began": found["began"],
        "ended": found["ended"],
        "cpu_seconds": round(cpu_s, 1),
        "load_before": round(load[0], 2),
        "trials": trials,
    }


def digest(given: Job) -> str:
    """What a finished side is kept under: the job, and the machine from its start on."""
    same = dump(replace(given, train="", validation="", directory="")) + _BOOT.read_text()
    return hashlib.sha256(same.encode()).hexdigest()[:16]


def row(workload: str, given: Job, sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A line of the table."""
    least = arithmetic(given)
    thaw = sides.get("thaw")
    found: dict[str, Any] = {
        "workload": workload,
        "precision": given.precision,
        "seconds": {side: sides[side]["seconds"] for side in sides},
        "ratios": {},
        "targets": {} if given.gpus else TARGETS[workload],
        # Of training without any overhead: how many times more a rival that pads nothing computes.
        "bound": round(least.rival / least.thaw, 2),
        "accuracy": {side: round(mean(t["accuracy"] for t in sides[side]["trials"]), 4) for side in sides},
        "difference": {},
        "sides": sides,
    }
    if thaw is not None:
        for side in ("stack", "trainer"):
            if side in sides:
                found["ratios"][side] = round(sides[side]["seconds"] / thaw["seconds"], 2)
                apart = [
                    ours["accuracy"] - theirs["accuracy"]
                    for ours, theirs in zip(thaw["trials"], sides[side]["trials"], strict=True)
                ]
                found["difference"][side] = {
                    "mean": round(mean(apart), 4),
                    "mean_absolute": round(mean(map(abs, apart)), 4),
                    # Of the mean: two runs of one trial differ by the noise of their data's order.
                    "standard_error": round((mean(a * a for a in apart) / len(apart)) ** 0.5, 4),
                }
    return found


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    machine = found["machine"]
    where = machine.get("gpu", f"{machine['cores']} cores of {machine['cpu']}")
    lines = [
        f"{found['trials']} trials, 1 epoch over {found['examples']} sentences; {where}; seconds from a cold "
        "start, Thaw's accuracy less the rival's",
        f"{'':>8} {'stack':>8} {'Trainer':>8} {'Thaw':>8} {'stack/Thaw':>16} {'Trainer/Thaw':>16} "
        f"{'bound':>6} {'accuracy':>9} {'- stack':>9} {'- Trainer':>9}",
    ]
    for line in found["rows"]:

        def ratio(side: str, line: dict[str, Any] = line) -> str:
            if side not in line["ratios"]:
                return ""
            target, least = line["targets"].get(side), ">=" if line["precision"] == "fp32" else ">"
            return f"{line['ratios'][side]:.2f}" + (f" ({least}{target:g})" if target else "")

        def number(values: dict[str, float], side: str, digits: int) -> str:
            return f"{values[side]:.{digits}f}" if side in values else ""

        apart = {side: values["mean"] for side, values in line["difference"].items()}
        lines.append(
            f"{line['workload']} {line['precision']:>5} "
            + " ".join(f"{number(line['seconds'], side, 1):>8}" for side in SIDES)
            + f" {ratio('stack'):>16} {ratio('trainer'):>16} {line['bound']:>6.2f}"
            + f" {number(line['accuracy'], 'thaw', 3):>9}"
            + " ".join([""] + [f"{number(apart, side, 3):>9}" for side in ("stack", "trainer")])
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run it, and print what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=250, help="sentences that trials are measured on")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpus", type=float, default=0.0, help="what each process has of a GPU")
    parser.add_argument("--model", default=MODEL, help="a BERT, as model.name of a sweep")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one side may take")
    parser.add_argument(
        "--out", type=Path, help="also write the JSON there, after each side; goes on from it"
    )
    asked = parser.parse_args(arguments)
    kept: dict[str, Any] = {}
    if asked.out and asked.out.exists():
        kept = json.loads(asked.out.read_text())["kept"]
    found: dict[str, Any] = {
        "machine": machine(gpu=asked.gpus > 0),
        "trials": asked.trials,
        "examples": asked.examples,
        "rows": [],
        "kept": kept,
    }
    for precision in asked.precision:
        for workload in asked.workloads:
            given = job(
                workload,
                trials=asked.trials,
                examples=asked.examples,
                validated=asked.validation,
                precision=precision,
                processes=asked.processes,
                gpus=asked.gpus,
                model=asked.model,
            )
            sides = {}
            for side in (side for side in SIDES if side in asked.sides):
                name = f"{precision}/{workload}/{side}/{digest(given)}"
                if name not in kept:
                    print(f"{precision} {workload} {side} ...", file=sys.stderr, flush=True)
                    kept[name] = measure(given, side, asked.limit)
                    _keep(asked.out, found)
                sides[side] = kept[name]
                taken = f"{kept[name]['seconds']} s, of processor {kept[name].get('cpu_seconds')} s"
                print(f"{precision} {workload} {side}: {taken}", file=sys.stderr, flush=True)
            found["rows"].append(row(workload, given, sides))
    _keep(asked.out, found)
    print(json.dumps({key: value for key, value in found.items() if key != "kept"}))
    print(table(found))
    return found


def _keep(out: Path | None, found: dict[str, Any]) -> None:
    if out is not None:
        draft = out.with_name(f".{out.name}.draft")
        draft.write_text(json.dumps(found, indent=1) + "\n")
        draft.replace(out)


if __name__ == "__main__":
    main()
