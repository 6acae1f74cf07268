"""Real faults in a real sweep on several raylets: what each costs, and whether results stay the same.

    python -m tests.benchmarks.faults [--faults worker,raylet,trainable,driver,drain] [--times 3] [--out F]

The same fixed list of trials runs undisturbed, and then with one fault in each trial but the last, at a
random moment after one of its evaluations: SIGKILL of a worker, of a whole raylet, of the process that holds
the gang, of the driver; or a node taken away with notice. `--faults absence` is a raylet that no other takes
the place of until the gang, with `--fewest`, has gone on smaller: then it grows again. Prints what was seen
as a table, or as JSON, and ends with exit code 1 where anything is not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.raylets import Raylets, raylets, small_sweep
from tests.benchmarks.results import tell
from tests.holders import holders, is_free
from tests.processes import parent, wait_for

BATCH, EXAMPLES, EPOCHS, EVALUATIONS = 16, 160, 4, 8
INTERVAL = EXAMPLES // 2
"""Examples between two checkpoints."""
NOTICE_S = 25.0
FREED_S, TOLERANCE = 30.0, 1e-4


def trainers(cluster: Raylets) -> dict[int, int]:
    """Pid of each worker whose raylet lives -> pid of its raylet; waits for some."""
    found: dict[int, int] = {}

    def look() -> bool:
        nodes = cluster.pids("/raylet/raylet")
        found.clear()
        for pid in cluster.pids("ray::RayTrainWorker"):
            with contextlib.suppress(OSError):
                if parent(pid) in nodes:
                    found[pid] = parent(pid)
        return bool(found)

    wait_for(look, 120, "a worker")
    return found


def worker(cluster: Raylets, rng: random.Random) -> str:
    """SIGKILL of a worker process."""
    pid = rng.choice(sorted(trainers(cluster)))
    os.kill(pid, signal.SIGKILL)
    return f"worker {pid}"


def raylet(cluster: Raylets, rng: random.Random) -> str:
    """SIGKILL of the raylet under a worker; another node takes its place."""
    pid = rng.choice(sorted(trainers(cluster).values()))
    cluster.lose(pid)
    cluster.add_node()
    return f"raylet {pid}"


def absence(cluster: Raylets, rng: random.Random) -> str:
    """SIGKILL of the raylet under a worker; another node comes once the gang does with fewer workers."""
    before = trainers(cluster)
    pid = rng.choice(sorted(before.values()))
    cluster.lose(pid)
    began = time.monotonic()
    wait_for(lambda: trainers(cluster).keys() - before, 120, "a smaller gang")
    took_s = time.monotonic() - began
    cluster.add_node()
    return f"raylet {pid}, until the gang was smaller after {took_s:.0f} s"


def trainable(cluster: Raylets, rng: random.Random) -> str:
    """SIGKILL of the process that holds the gang."""
    wait_for(lambda: cluster.pids("Trainable"), 120, "a trainable")
    pid = rng.choice(cluster.pids("Trainable"))
    os.kill(pid, signal.SIGKILL)
    return f"trainable {pid}"


def driver(cluster: Raylets, rng: random.Random) -> str:
    """SIGKILL of the driver; its supervisor starts another."""
    [pid] = cluster.pids("launch.py run", without="supervise")
    os.kill(pid, signal.SIGKILL)
    return f"driver {pid}"


def drain(cluster: Raylets, rng: random.Random) -> str:
    """Notice that the node under a worker will be taken away; it is, when the notice has run out."""
    import ray
    from ray.core.generated import autoscaler_pb2

    pid = rng.choice(sorted(trainers(cluster).values()))
    node = cluster.node_of(pid)
    deadline_ms = int((time.time() + NOTICE_S) * 1000)
    accepted, why = ray._private.worker.global_worker.gcs_client.drain_node(
        node, autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "spot", deadline_ms
    )
    assert accepted, why
    cluster.add_node()

    threading.Timer(NOTICE_S, cluster.lose, [pid]).start()
    return f"raylet {pid} with notice"


FAULTS: dict[str, Callable[[Raylets, random.Random], str]] = {
    "worker": worker,
    "raylet": raylet,
    "trainable": trainable,
    "driver": driver,
    "drain": drain,
    "absence": absence,
}


class Watch:
    """How many workers there were at a time, and which of the nodes the gangs' owners were on."""

    def __init__(self, cluster: Raylets) -> None:
        self.sizes: list[int] = []
        self.owners_on: set[str] = set()
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        import ray

        while not self._over.wait(0.5):
            kinds = {node["NodeID"]: (node.get("Labels") or {}) for node in ray.nodes()}
            size = len(self._cluster.pids("ray::RayTrainWorker"))
            if self.sizes[-1:] != [size]:
                self.sizes.append(size)
            for pid in self._cluster.pids("Trainable"):
                with contextlib.suppress(OSError, KeyError):  # it has just ended
                    labels = kinds[self._cluster.node_of(parent(pid))]
                    self.owners_on.add(labels.get("ray.io/market-type", ""))


class Sweep:
    """A sweep as its files show it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def trials(self) -> Sequence[Any]:
        """All trials, as the ledger has them."""
        from search.study import Study

        try:
            return Study.read(self.directory / "study.journal").trials()
        except (ValueError, OSError):
            return ()

    def repeated(self) -> list[tuple[float, int]]:
        """When a trial went on, and how many examples it trained once more; in order of time."""
        reached: dict[int, int] = {}
        again = []
        for line in (self.directory / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                trial = event["trial"]
                if event["kind"] == "log" and "train/loss" in event["metrics"]:
                    reached[trial] = max(reached.get(trial, 0), event["examples"])
                elif event["kind"] == "summary" and "resumed_step" in event["values"] and trial in reached:
                    twice = reached[trial] - event["values"]["resumed_step"] * BATCH
                    again.append((event["time"], max(0, twice)))
        return again


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A fault that was done."""

    fault: str
    victim: str
    at: float
    """Seconds since 1970."""


def left(cluster: Raylets) -> list[str]:
    """Actors and drivers that live, with their parents."""
    found = []
    for pid, line in cluster.processes().items():
        actor = "ray::" in line and "ray::IDLE" not in line and "Agent" not in line
        with contextlib.suppress(OSError):
            if actor or "launch.py" in line:
                found.append(f"{line.strip()} (pid {pid} of {parent(pid)})")
    return found


def run(
    cluster: Raylets, place: Path, file: Path, faults: Sequence[str], rng: random.Random, spread_s: float
) -> dict[str, Any]:
    """One sweep with one fault in each of its trials."""
    began = time.monotonic()
    lines: list[str] = []
    running = cluster.drive("run", file, "--storage", place)
    sweep = Sweep(place / "faults")
    done: list[Blow] = []
    reader = threading.Thread(target=lambda: lines.extend(running.stdout or ()), daemon=True)
    reader.start()
    with Watch(cluster) as watch:
        for number, fault in enumerate(faults):
            evaluations = rng.randint(1, EVALUATIONS - 2)
            wait_for(
                lambda number=number, least=evaluations: (  # type: ignore[misc]
                    running.poll() is not None
                    or any(len(trial.results) >= least for trial in sweep.trials()[number : number + 1])
                ),
                300,
                f"evaluation {evaluations} of trial {number}",
            )
            time.sleep(rng.uniform(0, spread_s))
            at = time.time()
            done.append(Blow(fault=fault, victim=FAULTS[fault](cluster, rng), at=at))
        code = running.wait(900)
    reader.join(10)
    took_s = time.monotonic() - began
    freed_s: float | None = None
    with contextlib.suppress(TimeoutError):
        freed_s = round(wait_for(lambda: is_free() and not left(cluster), 90, "free"), 1)
    return {
        "code": code,
        "log": "".join(lines)[-3000:],
        "seconds": round(took_s, 1),
        "freed_s": freed_s,
        "held_by": holders() if freed_s is None else [],
        "victims": [blow.victim for blow in done],
        "repeated_examples": costs(done, sweep.repeated()),
        "left": left(cluster),
        "sizes": watch.sizes,
        "owners_on": sorted(watch.owners_on),
        "trials": [
            {
                "state": trial.state.value,
                "error": trial.error,
                "params": dict(trial.params),
                "results": [[result.epochs, dict(result.metrics)] for result in trial.results],
            }
            for trial in sweep.trials()
        ],
    }


def costs(blows: Sequence[Blow], again: Sequence[tuple[float, int]]) -> list[list[int]]:
    """Examples trained once more after each fault, at each going on until the next fault."""
    ends = [blow.at for blow in blows[1:]] + [float("inf")]
    return [
        [examples for at, examples in again if blow.at <= at < end]
        for blow, end in zip(blows, ends, strict=False)
    ]


def differences(calm: dict[str, Any], stormy: dict[str, Any]) -> float:
    """The largest difference of any metric; infinite where trials or evaluations differ."""
    worst = 0.0
    if len(calm["trials"]) != len(stormy["trials"]):
        return float("inf")
    for ours, theirs in zip(calm["trials"], stormy["trials"], strict=True):
        if [r[0] for r in ours["results"]] != [r[0] for r in theirs["results"]] or ours["params"] != theirs[
            "params"
        ]:
            return float("inf")
        for (_, mine), (_, yours) in zip(ours["results"], theirs["results"], strict=True):
            worst = max([worst, *(abs(mine[name] - yours[name]) for name in mine)])
    return worst


def complaints(run: dict[str, Any]) -> list[str]:
    """What is not as it must be after a sweep with faults."""
    found = []
    if run["code"] != 0:
        found.append(f"exit code {run['code']}")
    found += [f"trial {n}: {t['state']}" for n, t in enumerate(run["trials"]) if t["state"] != "complete"]
    if run["largest_difference"] > TOLERANCE:
        found.append(f"metrics differ by {run['largest_difference']:.1e}")
    for fault, examples in zip(run["faults"], run["repeated_examples"], strict=True):
        # On notice a checkpoint is written first. (The gang's owner may yet go with the node.)
        # To grow again costs a new group once more, from the newest checkpoint.
        most = INTERVAL * (2 if fault == "absence" else 1)
        if sum(examples) > most or (fault == "drain" and sum(examples[:1])):
            found.append(f"{fault}: {examples} examples trained again")
    if "spot" in run["owners_on"]:
        found.append("a gang's owner was on a spot node")
    if run["freed_s"] is None or run["freed_s"] > FREED_S:
        found.append(f"resources free after {run['freed_s']} s: {run['held_by']}")
    return found + [f"left: {process}" for process in run["left"] if run["freed_s"] is None]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run it, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    usual = ",".join(name for name in FAULTS if name != "absence")
    parser.add_argument("--faults", default=usual, help="which, with commas between them")
    parser.add_argument("--times", type=int, default=3, help="how often each")
    parser.add_argument("--workers", type=int, default=2, help="workers of a gang")
    parser.add_argument("--fewest", type=int, default=None, help="workers with which a gang still goes on")
    parser.add_argument("--spare", type=int, default=1, help="nodes beside those of a gang")
    parser.add_argument("--spot", action="store_true", help="all nodes but the head are on spot")
    parser.add_argument("--seed", type=int, default=None, help="of the moments and the victims")
    parser.add_argument("--out", type=Path, default=None, help="a file for the JSON")
    options = parser.parse_args(arguments)
    faults = options.faults.split(",")
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    rng = random.Random(seed)
    found: dict[str, Any] = {"seed": seed, "interval_examples": INTERVAL, "runs": []}
    workers = options.workers if options.fewest is None else [options.fewest, options.workers]
    nodes = options.workers + options.spare
    with tempfile.TemporaryDirectory() as temporary, raylets(nodes, spot=options.spot) as cluster:
        place = Path(temporary)
        raw = small_sweep(
            place,
            "faults",
            # What dropout draws depends on the number of workers.
            training={"epochs": EPOCHS} | ({} if options.fewest is None else {"dropout": 0.0}),
            # With one to spare: a fault that comes late meets the next.
            search={"trials": len(faults) + 1},
            resources={"workers": workers, "max_concurrent": 1},
        )
        file = place / "faults.yaml"
        file.write_text(yaml.safe_dump(raw))
        storage = place / "calm"
        storage.mkdir()
        calm = run(cluster, storage, file, [], rng, 0)
        seconds = [
            json.loads(line)["time"]
            for line in (storage / "faults" / "metrics.jsonl").read_text().splitlines()
        ]
        spread_s = (seconds[-1] - seconds[0]) / (len(faults) + 1) / EVALUATIONS
        found["calm"] = calm
        for time_ in range(options.times):
            storage = place / f"stormy-{time_}"
            storage.mkdir()
            order = rng.sample(faults, len(faults))
            stormy = run(cluster, storage, file, order, rng, spread_s)
            stormy |= {"faults": order, "largest_difference": differences(calm, stormy)}
            stormy["complaints"] = complaints(stormy)
            found["runs"].append(stormy)
            print(
                f"{time_}: {', '.join(order)}: exit {stormy['code']}, {stormy['seconds']} s (calm "
                f"{calm['seconds']}), largest difference {stormy['largest_difference']:.1e}, repeated "
                f"{stormy['repeated_examples']} of {INTERVAL} examples, free after "
                f"{stormy['freed_s']} s; {stormy['complaints'] or 'all well'}",
                file=sys.stderr,
                flush=True,
            )
    tell(found, options.out)
    return found


if __name__ == "__main__":
    sys.exit(any(run["complaints"] for run in main()["runs"]))
