"""What a sweep's driver costs: next-to-empty trials by the number of trials, gangs and results.

    python -m tests.benchmarks.scale [--trials 10 100 1000] [--gangs 1 2 4] [--long 1 4 8] [--raylets 2]
                                     [--out FILE]

Each run is a sweep of its own by the command line, on several raylets of this machine: trials of two steps
of a tiny random model with one result each, and, on the most gangs, once more with several results each.
What a gang costs by being there, such trials do not tell, for more gangs end more of them: so there are also
runs of few long trials (`--long`: on so many gangs), of MiniLM, all of it thawed, with two results each.
Rates count from when the gangs have ended two trials each, so without cold starts. Gangs, driver and Ray
share this machine's cores, so the rates are lower bounds; what the driver itself costs is measured as its
CPU time, and Ray's control plane as that of its GCS.

From all runs a cost model is fitted: CPU seconds of the driver for each second that it waits, for each gang
and second, for each trial, for each result, and for each trial with each that the ledger has already
(non-negative least squares of relative errors, over tenths of runs). A driver is one Python process, so it
is full at one CPU second a second: `sustained` solves for the rate of trials at which that is so, and the
shortest trials at which so many gangs do not wait for it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.benchmarks.raylets import Raylets, raylets, small_sweep
from tests.benchmarks.results import machine, tell
from tests.benchmarks.soak import status, tiny_model
from tests.processes import cpu_s

NODES, KNOWN = 200, (1_000, 10_000)
"""What the model is asked about: a gang on each of so many nodes, and so many trials in the ledger."""
SEVERAL = 8
"""Results of a trial, in the runs that have more than one."""
_FEW = 2
"""Results of a long trial."""
_LONG_TRIALS = 4
"""Of each gang."""
_SAMPLE_S = 0.25
_TICK_S = 0.01
"""What CPU time is counted in."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a run consists of."""

    trials: int
    gangs: int
    results: int = 1
    """Of a trial."""
    long: bool = False
    """Whether its trials take long."""

    @property
    def name(self) -> str:
        """Of its sweep."""
        return f"scale-{self.trials}-{self.gangs}-{self.results}{'-long' if self.long else ''}"


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a run."""

    seconds: float
    gangs: int
    trials: int
    """That ended in it."""
    results: int
    known: float
    """Trials that had ended before, and half of those in it."""
    driver_cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """CPU seconds of a driver."""

    per_second: float
    per_gang_second: float
    per_trial: float
    per_result: float
    per_trial_and_known: float

    def sustained(self, gangs: int, results: float, known: int) -> float:
        """Trials a second, of `results` results each, that fill the driver on `gangs` gangs; 0: none.

        Args:
            known: trials in the ledger.
        """
        left = 1.0 - self.per_second - gangs * self.per_gang_second
        each = self.per_trial + results * self.per_result + known * self.per_trial_and_known
        return max(0.0, left) / each


def fit(windows: Sequence[Window]) -> Costs:
    """The costs that explain the windows best; none is negative."""
    from scipy.optimize import nnls

    cpu = np.array([max(w.driver_cpu_s, _TICK_S) for w in windows])
    rows = np.array(
        [[w.seconds, w.seconds * w.gangs, w.trials, w.results, w.trials * w.known] for w in windows],
        dtype=float,
    )
    found, _ = nnls(rows / cpu[:, None], np.ones(len(windows)))
    return Costs(
        per_second=found[0],
        per_gang_second=found[1],
        per_trial=found[2],
        per_result=found[3],
        per_trial_and_known=found[4],
    )


def at_scale(costs: Costs, nodes: int = NODES) -> list[dict[str, Any]]:
    """What the costs mean for a driver with a gang on each of `nodes` nodes."""
    rows = []
    for known, results in product(KNOWN, (1, SEVERAL)):
        rate = costs.sustained(nodes, results, known)
        shortest = nodes / rate if rate else None
        rows.append(
            {
                "gangs": nodes,
                "known": known,
                "results": results,
                "trials_per_s": rate,
                "shortest_trial_s": shortest,
            }
        )
    return rows


class Sampler:
    """CPU time and memory of a driver and of Ray's control plane, over time."""

    def __init__(self, cluster: Raylets, driver: int) -> None:
        [gcs] = cluster.pids("gcs_server")
        self.samples: list[dict[str, float]] = []
        self._pids = (driver, gcs)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        driver, gcs = self._pids
        while not self._ended.wait(_SAMPLE_S):
            with contextlib.suppress(OSError, KeyError, ValueError):  # it ends
                self.samples.append(
                    {
                        "time": time.time(),
                        "driver_cpu_s": cpu_s(driver),
                        "gcs_cpu_s": cpu_s(gcs),
                        "memory_mb": status(driver)["memory_mb"],
                    }
                )

    def end(self) -> list[dict[str, float]]:
        """All samples."""
        self._ended.set()
        self._thread.join()
        return self.samples


def steady(
    events: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, float]], gangs: int
) -> tuple[dict[str, float | None], list[Window]]:
    """The rates of a run once its gangs are warm, and its windows; None, and no windows, of too short a run.

    Raises:
        ValueError: where fewer trials ended than there are gangs, and one.
    """
    ends = sorted(event["time"] for event in events if event["kind"] == "finish")
    results = [
        event["time"]
        for event in events
        if event["kind"] == "log" and any(name.startswith("eval/") for name in event["metrics"])
    ]
    if len(ends) < gangs + 2:
        raise ValueError(f"{len(ends)} trials are too few for {gangs} gangs; give at least {gangs + 2}")
    began, ended = ends[min(2 * gangs, len(ends) // 2) - 1], ends[-1]

    def count(times: Sequence[float], a: float, b: float) -> int:
        return sum(a < at <= b for at in times)

    figures: dict[str, float | None] = {
        "trials_per_s": count(ends, began, ended) / (ended - began),
        "results_per_s": count(results, began, ended) / (ended - began),
    }
    inside = [sample for sample in samples if began <= sample["time"] <= ended]
    marks = inside[:: max(1, len(inside) // 10)]
    windows = [
        Window(
            seconds=b["time"] - a["time"],
            gangs=gangs,
            trials=count(ends, a["time"], b["time"]),
            results=count(results, a["time"], b["time"]),
            known=count(ends, 0.0, a["time"]) + count(ends, a["time"], b["time"]) / 2,
            driver_cpu_s=b["driver_cpu_s"] - a["driver_cpu_s"],
        )
        for a, b in pairwise(marks)
    ]
    names = (
        "driver_cores",
        "driver_cpu_s_per_trial",
        "gcs_cpu_s_per_trial",
        "memory_mb_first",
        "memory_mb_last",
    )
    if not windows:
        return figures | dict.fromkeys(names), []
    first, last = inside[0], inside[-1]
    trials = max(1, count(ends, first["time"], last["time"]))
    driver, gcs = (last[name] - first[name] for name in ("driver_cpu_s", "gcs_cpu_s"))
    said = (
        driver / (last["time"] - first["time"]),
        driver / trials,
        gcs / trials,
        first["memory_mb"],
        last["memory_mb"],
    )
    return figures | dict(zip(names, said, strict=True)), windows


def run(cluster: Raylets, place: Path, kind: Kind) -> tuple[dict[str, Any], list[Window]]:
    """One sweep."""
    model: dict[str, Any] = {} if kind.long else {"model": {"name": str(place / "model")}}
    raw = small_sweep(
        place,
        kind.name,
        **model,
        training=_length(kind),
        search={"trials": kind.trials},
        resources={"max_concurrent": kind.gangs},
    )
    file = place / f"{kind.name}.yaml"
    file.write_text(yaml.safe_dump(raw))
    running = cluster.drive("run", file, "--storage", place, supervised=False)
    sampler = Sampler(cluster, running.pid)
    log = running.communicate()[0]
    samples = sampler.end()
    if running.returncode:
        raise RuntimeError(f"{kind.name} ended with {running.returncode}: {log[-1500:]}")
    events = [json.loads(line) for line in (place / kind.name / "metrics.jsonl").read_text().splitlines()]
    figures, windows = steady(events, samples, kind.gangs)
    return {**asdict(kind), **figures}, windows


def _length(kind: Kind) -> dict[str, Any]:
    """Settings of trials of so many results. Sixteen of 160 examples are a step."""
    if kind.long:
        length = {"epochs": 1, "evaluations_per_epoch": kind.results, "unfreezing": {"schedule": "full"}}
    elif kind.results == 1:
        length = {"epochs": 0.2, "evaluations_per_epoch": 1}
    else:
        length = {"epochs": 0.1 * kind.results, "evaluations_per_epoch": 10}
    return {**length, "log_every": 10}


def table(found: Mapping[str, Any]) -> str:
    """The figures for people."""
    columns = {
        "trials": "trials",
        "gangs": "gangs",
        "results": "results",
        "long": "long",
        "trials_per_s": "trials/s",
        "results_per_s": "results/s",
        "driver_cores": "driver cores",
        "driver_cpu_s_per_trial": "driver s/trial",
        "gcs_cpu_s_per_trial": "GCS s/trial",
        "memory_mb_last": "driver MB",
    }
    lines = ["  ".join(f"{heading:>14}" for heading in columns.values())]
    for row in found["rows"]:
        cells = [_cell(row[name]) for name in columns]
        lines.append("  ".join(f"{cell:>14}" for cell in cells))
    costs = found["costs"]
    lines.append(
        f"driver CPU: {costs['per_second']:.3f} s a second, {1e3 * costs['per_gang_second']:.2f} ms a gang "
        f"and second, {1e3 * costs['per_trial']:.1f} ms a trial, {1e3 * costs['per_result']:.1f} ms a "
        f"result, {1e3 * costs['per_trial_and_known']:.3f} ms a trial for each that is known"
    )
    for row in found["at_scale"]:
        case = f"{row['gangs']} gangs, {row['known']} trials known, {row['results']} results a trial"
        said = "no trials at all"
        if row["shortest_trial_s"] is not None:
            said = (
                f"{row['trials_per_s']:.1f} trials/s, so none has to wait where trials last "
                f"{row['shortest_trial_s']:.0f} s or more"
            )
        lines.append(f"one driver on {case}: {said}")
    return "\n".join(lines)


def _cell(value: float | bool | None) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.4g}"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--gangs", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--long", type=int, nargs="*", default=[1, 4, 8], help="gangs with long trials")
    parser.add_argument("--raylets", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="also write the JSON there")
    options = parser.parse_args(arguments)
    most, many = max(options.gangs), sorted(options.trials)[len(options.trials) // 2]
    kinds = [Kind(trials=trials, gangs=gangs) for trials in options.trials for gangs in options.gangs]
    kinds.append(Kind(trials=many, gangs=most, results=SEVERAL))
    kinds += [Kind(trials=_LONG_TRIALS * n, gangs=n, results=_FEW, long=True) for n in options.long]
    before, rows, windows = machine(), [], []
    each = -(-max(kind.gangs for kind in kinds) // options.raylets)
    with tempfile.TemporaryDirectory() as temporary, raylets(options.raylets, cpus=each) as cluster:
        place = Path(temporary)
        os.environ.setdefault("THAW_CACHE", str(place / "cache"))
        (place / "model").mkdir()
        tiny_model(place / "model")
        for kind in kinds:
            row, seen = run(cluster, place, kind)
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
            windows += seen
    costs = fit(windows)
    found = {
        "raylets": options.raylets,
        "machine": before,
        "rows": rows,
        "windows": [asdict(window) for window in windows],
        "costs": asdict(costs),
        "at_scale": at_scale(costs),
    }
    tell(found, options.out, table(found))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
