"""How near a sweep comes to what the machine's matrix products allow, and where the rest goes.

    python -m tests.benchmarks.limit [--workload w1] [--trials 24] [--examples 1000]
        [--processes 4 --gpus 0.25] [--out FILE]

Runs a workload of `sweep_speed` under Thaw from a cold start. What it had to compute are the products of the
suffixes, forward and backward on real tokens, and one pass of the frozen blocks over all examples; divided by
the rate of the same products alone, on all cores at once (with --gpus by all processes on their GPU), that is
the time which no sweep could go below. The rest of the wall-clock, times the number of gangs, is put down to
its causes: by the times in the sweep's `metrics.jsonl` between trials, and within them by what
`training.timing` measures of each kind of phase, in as many processes at once. The two are measured in
different runs, so a difference is left; it is shown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.loading import loads
from search.spec import trial_settings
from search.trackers.jsonl import FILE
from tests.benchmarks.jobs import Job
from tests.benchmarks.results import machine, tell
from tests.benchmarks.sides.thaw import NAME
from tests.benchmarks.sweep_speed import measure
from tests.benchmarks.workloads import WORKLOADS, job
from tests.conftest import MODEL
from training.batches import WIDTH_MULTIPLE, epoch_batches, width
from training.config import ModelConfig, TrialConfig
from training.data import Data, prepare
from training.models import load_config
from training.plan import Stretch
from training.rng import derive
from training.timing import Cost, Shape, probe

TARGET = 0.4
_MATMUL_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Times:
    """When a trial got where, by the driver's clock."""

    start: float
    """It was handed out."""
    opened: float
    """Its worker had model and data."""
    finish: float


def times(file: Path) -> list[Times]:
    """Of all trials of a sweep, by its `metrics.jsonl`."""
    seen: dict[int, dict[str, float]] = {}
    for line in file.read_text().splitlines():
        event = json.loads(line)
        trial = seen.setdefault(event["trial"], {})
        kind = event["kind"]
        if kind == "summary" and "resumed_step" in event["values"]:
            kind = "opened"
        if kind in ("start", "opened", "finish"):
            trial.setdefault(kind, event["time"])
    return [Times(**seen[number]) for number in sorted(seen)]


def lanes(trials: Sequence[Times], gangs: int) -> list[list[Times]]:
    """The trials of each gang: a trial goes to the one that came free last."""
    found: list[list[Times]] = [[] for _ in range(gangs)]
    for trial in sorted(trials, key=lambda trial: trial.start):
        free = [lane for lane in found if not lane or lane[-1].finish <= trial.start + 0.05]
        max(free or found, key=lambda lane: lane[-1].finish if lane else -1.0).append(trial)
    return found


@dataclass(frozen=True, kw_only=True)
class Work:
    """Multiplications and additions of matrix products."""

    suffix: float
    """Training on real tokens."""
    prefix: float
    """The frozen blocks, once for all trials."""
    padding: float
    """Training on padding."""

    @property
    def needed(self) -> float:
        """What no sweep can do without."""
        return self.suffix + self.prefix


def work(given: Job, data: Data) -> Work:
    """What the trials of a job compute."""
    hidden, inner = sizes(given)
    lengths = data.train.lengths
    exact = given.precision == "fp32"
    suffix = padding = 0.0
    lowest = {"train": 0, "validation": 0}
    for task in given.tasks:
        batches = epoch_batches(lengths, task.batch_size, derive(task.seed, "batches"), 0)
        for stretch, boundary in stretches(given, task.number):
            lowest["train"] = max(lowest["train"], boundary)
            running, thawed = given.num_blocks - boundary, len(stretch.phase.blocks)
            # Where nothing below the lowest block trains, nobody asks for the gradient by its input: that
            # saves a product each in query, key and value.
            spared = 0.0 if stretch.phase.embeddings or not running else 6.0 * hidden * hidden
            for batch in batches[stretch.start : stretch.stop]:
                own = lengths[batch]
                columns = width(int(own.max()), cap=given.max_length, multiple=1 if exact else WIDTH_MULTIPLE)
                passes = 2 * running + thawed
                real = passes * products(own, hidden=hidden, inner=inner) - spared * float(own.sum())
                suffix += real
                wide = passes * products(np.full(len(own), columns), hidden=hidden, inner=inner)
                padding += wide - spared * columns * len(own) - real
        lowest["validation"] = max(lowest["validation"], boundary)
    prefix = sum(
        boundary * products(getattr(data, split).lengths, hidden=hidden, inner=inner)
        for split, boundary in lowest.items()
    )
    return Work(suffix=suffix, prefix=prefix, padding=padding)


def products(lengths: np.ndarray, *, hidden: int, inner: int) -> float:
    """Floating-point operations of the matrix products in one pass of one block, forward.

    Gradients by the input take as many again, and gradients by the weights too (attention has no weights in
    its own products, but two inputs).

    Args:
        lengths: int64 [n], tokens of each example, or columns where padding counts.
        hidden: width of the hidden states.
        inner: width within the feed-forward part.
    """
    tokens = np.asarray(lengths, np.float64)
    linear = 2.0 * (4 * hidden * hidden + 2 * hidden * inner)
    return float((linear * tokens + 4.0 * hidden * tokens**2).sum())


def sizes(given: Job) -> tuple[int, int]:
    """Of the hidden states, and within the feed-forward part."""
    config: Any = load_config(ModelConfig(name=given.model))
    return int(config.hidden_size), int(config.intermediate_size)


def stretches(given: Job, number: int) -> Iterator[tuple[Stretch, int]]:
    """The phases of a trial, with the number of frozen blocks whose output is stored."""
    for stretch in given.plan(given.tasks[number]).stretches:
        yield stretch, max(stretch.phase.boundary(given.num_blocks), 0)


def rate(given: Job, tokens: float) -> float:
    """Operations a second of one process in the model's products, with all processes at it at once.

    Args:
        tokens: mean of an example.
    """
    rows = sorted({round(task.batch_size * tokens) for task in given.tasks})
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, mp_context=spawn) as pool:
        begin = time.time() + 10.0  # once all have their libraries
        asked = [pool.submit(_multiply, *sizes(given), rows, given, begin) for _ in range(given.processes)]
        return float(np.mean([one.result() for one in asked]))


def _multiply(hidden: int, inner: int, rows: Sequence[int], given: Job, begin: float) -> float:
    import torch

    torch.set_num_threads(1)
    dtype = torch.float32 if given.precision == "fp32" else torch.bfloat16
    device = torch.device("cuda" if given.gpus else "cpu")
    finished = torch.cuda.synchronize if given.gpus else lambda: None
    # Query, key, value and output; in and out of the feed-forward part: as many products of each a block.
    shapes = [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
    cases = []
    for count in rows:
        for into, out in shapes:
            x, w, g = (
                torch.randn(*size, dtype=dtype, device=device)
                for size in ((count, into), (out, into), (count, out))
            )
            cases += [(x, w.T), (g, w), (g.T, x)]  # forward, gradient by the input, by the weights
    operations = sum(2.0 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in cases)
    for a, b in cases:
        a @ b
    finished()
    time.sleep(max(0.0, begin - time.time()))
    began, turns = time.perf_counter(), 0
    while time.perf_counter() - began < _MATMUL_S:
        for a, b in cases:
            a @ b
        finished()
        turns += 1
    return turns * operations / (time.perf_counter() - began)


def shapes(given: Job) -> list[Shape]:
    """The kinds of phases of a job, the deepest first.

    So each store builds on that of the one before, as in a sweep, which foresees what it will need.
    """
    found: dict[Shape, None] = {}
    for task in given.tasks:
        for stretch, _ in stretches(given, task.number):
            found[_shape(given, stretch, task.batch_size)] = None
    return sorted(found, key=lambda shape: (-shape.depth, shape.batch_size))


def _shape(given: Job, stretch: Stretch, batch_size: int) -> Shape:
    return Shape(depth=given.num_blocks - stretch.phase.boundary(given.num_blocks), batch_size=batch_size)


def account(
    given: Job,
    *,
    spawned: float,
    ended: float,
    trials: Sequence[Times],
    costs: Sequence[Cost],
    done: Work,
    per_second: float,
) -> dict[str, float]:
    """Seconds of gangs by what they went to; their sum is gangs times wall-clock."""
    gangs = given.processes
    runs = lanes(trials, gangs)
    used = [lane for lane in runs if lane]
    total = gangs * (ended - spawned)
    last = max(trial.finish for trial in trials)
    inside = sum(trial.finish - trial.opened for trial in trials)
    cold = gangs * (min(trial.start for trial in trials) - spawned) + sum(
        lane[0].opened - min(t.start for t in trials) for lane in used
    )
    tail = sum(last - (lane[-1].finish if lane else spawned) for lane in runs)
    between = sum(later.opened - lane[i].finish for lane in used for i, later in enumerate(lane[1:]))
    known = {cost.shape: cost for cost in costs}
    build = steps = evaluation = proof = 0.0
    for task in given.tasks:
        cost = None
        for stretch, _ in stretches(given, task.number):
            cost = known[_shape(given, stretch, task.batch_size)]
            build += cost.begin_s
            steps += cost.step_s * (stretch.stop - stretch.start)
            proof += cost.end_s
        assert cost is not None
        evaluation += cost.evaluation_s
    store: dict[int, float] = {}
    for cost in costs:
        store[cost.shape.depth] = max(store.get(cost.shape.depth, 0.0), cost.store_s)
    stored = sum(store.values())
    useful = done.suffix / per_second
    padding = done.padding / per_second
    prefix = done.prefix / per_second
    return {
        "useful: products of the suffixes": useful,
        "useful: products of the frozen blocks, once": prefix,
        "cold start: driver, Ray, gangs, model and data": cold,
        "between trials": between,
        "engine builds": build,
        "building the store, beside its products": stored - prefix,
        "padding": padding,
        "steps beside products": steps - useful - padding,
        "evaluation and checkpoint": evaluation,
        "proofs, and closing of engines": proof,
        "gangs idle at the end": tail,
        "export and shutdown": gangs * (ended - last),
        "difference between sweep and probe": inside - build - steps - evaluation - proof - stored,
        "total": total,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run it, and print what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=list(WORKLOADS), default="w1")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=250)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpus", type=float, default=0.0, help="what each process has of a GPU")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    given = job(
        asked.workload,
        trials=asked.trials,
        examples=asked.examples,
        validated=asked.validation,
        precision=asked.precision,
        processes=asked.processes,
        gpus=asked.gpus,
        model=asked.model,
    )
    before = machine(gpu=asked.gpus > 0)
    with tempfile.TemporaryDirectory(prefix="thaw-limit-") as temporary:
        folder = Path(temporary)
        print("the sweep ...", file=sys.stderr, flush=True)
        ran = measure(given, "thaw", 1800.0, folder)
        sweep = folder / "runs" / NAME
        trials = times(sweep / FILE)
        config = _config(sweep)
        data = prepare(config.model, config.task, config.data, cache=folder / "cache")
        print("the rate of matrix products ...", file=sys.stderr, flush=True)
        per_second = rate(given, float(data.train.lengths.mean()))
        print("the parts of a trial ...", file=sys.stderr, flush=True)
        store = loads((sweep / "sweep.yaml").read_text()).resources.prefix_store
        costs = probe(
            config, shapes(given), store=store, processes=given.processes, cpus=1, gpu=given.gpus > 0
        ).costs
    done = work(given, data)
    spent = account(
        given,
        spawned=ran["began"],
        ended=ran["ended"],
        trials=trials,
        costs=costs,
        done=done,
        per_second=per_second,
    )
    total = spent.pop("total")
    found = {
        "machine": before,
        "workload": asked.workload,
        "precision": asked.precision,
        "trials": asked.trials,
        "examples": asked.examples,
        "seconds": ran["seconds"],
        "load_before": ran["load_before"],
        "gigaflops": done.needed / 1e9,
        "gigaflops_per_second": [per_second / 1e9, given.processes],
        "reached": done.needed / per_second / total,
        "target": TARGET,
        "gang_seconds": {name: round(seconds, 2) for name, seconds in spent.items()},
        "shares": {name: round(seconds / total, 4) for name, seconds in spent.items()},
    }
    tell(found, asked.out, table(found))
    return found


def _config(sweep: Path) -> TrialConfig:
    return trial_settings(loads((sweep / "sweep.yaml").read_text()), {}, seed=0)


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    per_second, gangs = found["gigaflops_per_second"]
    where = found["machine"].get("gpu")
    who, place = ("process", where) if where else ("core", f"{gangs} cores of {found['machine']['cpu']}")
    lines = [
        f"{found['workload']} in {found['precision']}, {found['trials']} trials of {found['examples']} "
        f"sentences: {found['seconds']:.1f} s from a cold start, {gangs} gangs, {place}",
        f"{found['gigaflops']:.0f} GFLOP needed, {per_second:.1f} GFLOP/s a {who} with all at it: "
        f"{100 * found['reached']:.0f} % of what these allow (target {100 * found['target']:.0f} %)",
    ]
    for name, share in found["shares"].items():
        lines.append(f"{name:<48} {found['gang_seconds'][name]:>8.1f} s {100 * share:>6.1f} %")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
