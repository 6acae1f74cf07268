"""Several raylets on this machine, in processes of their own and marked, for benches of clusters."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import MODEL, REPOSITORY, write_sentences
from tests.processes import MARK, marked, new_mark


class Marked:
    """Processes that inherited a mark in their environment, as all of a cluster and its drivers do."""

    def __init__(self, name: str) -> None:
        self.mark = new_mark(name)
        self.temporary = tempfile.mkdtemp(prefix="thaw-")  # short: Ray puts sockets there
        os.environ[MARK] = self.mark
        os.environ["RAY_AUTH_MODE"] = "disabled"
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.address = ""

    def processes(self) -> dict[int, str]:
        """Pid -> command line of all processes of the cluster and its drivers."""
        return marked(self.mark)

    def pids(self, part: str, without: str = "\0") -> list[int]:
        """Pids of the processes with `part` in their command lines."""
        return sorted(pid for pid, line in self.processes().items() if part in line and without not in line)

    def drive(self, *arguments: str | Path, supervised: bool = True) -> subprocess.Popen[str]:
        """Start a driver: Thaw's command line with this cluster's address."""
        supervisor = ["-m", "cluster.jobs.supervise", sys.executable] if supervised else []
        return subprocess.Popen(
            [sys.executable, *supervisor, "launch.py", *map(str, arguments), "--address", self.address],
            cwd=REPOSITORY,
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self) -> None:
        """End every process of the cluster."""
        for pid in self.processes():
            if pid != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        os.environ.pop(MARK, None)
        shutil.rmtree(self.temporary, ignore_errors=True)


class Raylets(Marked):
    """A cluster whose head holds no trials, and nodes of one kind beside it.

    Connects this process to it, so use it in a process that has no other. With `spot` the nodes beside
    the head are labelled as such.
    """

    def __init__(self, nodes: int, cpus: int = 1, gpus: int = 0, spot: bool = False) -> None:
        super().__init__("raylets")
        self._cpus, self._gpus = cpus, gpus
        self._labels = {"labels": {"ray.io/market-type": "spot"}} if spot else {}
        import ray
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "temp_dir": self.temporary,
            },
        )
        self.address = str(self._cluster.address)
        for _ in range(nodes):
            self.add_node()
        ray.init(address=self.address, log_to_driver=False)

    def add_node(self) -> Any:
        """Another node."""
        return self._cluster.add_node(
            num_cpus=self._cpus, num_gpus=self._gpus, object_store_memory=100 * 2**20, **self._labels
        )

    def node_of(self, raylet: int) -> str:
        """The id, in hex, of the node of a raylet."""
        found = re.search(r"--node[-_]id=([0-9a-f]+)", self.processes()[raylet])
        assert found, self.processes()[raylet]
        return found[1]

    def lose(self, raylet: int) -> None:
        """SIGKILL of a node's raylet, whose workers go with it; nothing where it is gone."""
        if raylet not in self.pids("/raylet/raylet"):
            return
        with contextlib.suppress(OSError):
            os.kill(raylet, signal.SIGKILL)
            # It is this process's child: to its workers it lives as long as nobody has waited for it.
            os.waitpid(raylet, 0)

    def close(self) -> None:
        """End every process of the cluster."""
        import ray

        ray.shutdown()
        with contextlib.suppress(Exception):
            self._cluster.shutdown()
        self.kill()


@contextlib.contextmanager
def raylets(nodes: int, cpus: int = 1, gpus: int = 0, spot: bool = False) -> Iterator[Raylets]:
    """A cluster that is gone at the end."""
    made = Raylets(nodes, cpus, gpus, spot)
    try:
        yield made
    finally:
        made.close()


def small_sweep(directory: Path, name: str, **sections: Any) -> dict[str, Any]:
    """A sweep of small trials of the real model on real sentences, that two cores run in seconds."""
    write_sentences(directory)
    raw: dict[str, Any] = {
        "name": name,
        "model": {"name": MODEL},
        "task": {"max_length": 32},
        "data": {
            "train": str(directory / "train.jsonl"),
            "validation": str(directory / "validation.jsonl"),
        },
        "training": {
            "epochs": 2,
            "evaluations_per_epoch": 2,
            "batch_size": 16,
            "log_every": 1,
            "unfreezing": {"schedule": "top", "depth": 1},
        },
        "parameters": {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-3}},
        "search": {
            "metric": {"name": "eval/accuracy", "goal": "maximize"},
            "sampler": "random",
            "scheduler": "none",
            "trials": 2,
            "seed": 1,
        },
        "resources": {"workers": 1, "max_concurrent": 1},
        "tracking": {"wandb": None},
    }
    merged = dict(raw)
    for section, value in sections.items():
        both = isinstance(value, Mapping) and isinstance(raw.get(section), Mapping)
        merged[section] = {**raw[section], **value} if both else value
    return merged
