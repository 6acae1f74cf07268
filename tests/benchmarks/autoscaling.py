"""A sweep on Ray's autoscaler (v2) with its fake node provider: nodes come when gangs wait, and go.

    python -m tests.benchmarks.autoscaling [--gangs 3] [--trials 4] [--out F]

Starts a head without CPUs and no workers, runs a sweep of small trials, and watches the nodes until the last
one has gone. Prints node-seconds used against those that trials held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.connect import NODE_TYPES
from tests.benchmarks.raylets import Marked, small_sweep
from tests.benchmarks.results import tell
from tests.processes import wait_for

MOST_NODES = 6
IDLE_S = 10.0


def configuration(gcs: str) -> dict[str, Any]:
    """The cluster's file; an external provider, as Ray's wheel lacks the fake one's defaults."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    empty: list[str] = []
    return {
        "cluster_name": "fake",
        "max_workers": MOST_NODES,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": gcs,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "one-cpu": {
                "resources": {"CPU": 1, "object_store_memory": 100 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST_NODES,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        **dict.fromkeys(
            ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"],
            empty,
        ),
        **dict.fromkeys(["head_start_ray_commands", "worker_start_ray_commands"], empty),
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }


@contextlib.contextmanager
def autoscaling() -> Iterator[Marked]:
    """A head with an autoscaler, and this process connected to it."""
    made = Marked("autoscaling")
    os.environ[NODE_TYPES] = json.dumps([{"name": "one-cpu", "CPU": 1, "max": MOST_NODES}])
    import ray
    from ray._common.network_utils import build_address
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in taken:
            each.bind(("", 0))
        gcs, client, agent = (each.getsockname()[1] for each in taken)
    made.address = build_address(ray.util.get_node_ip_address(), gcs)
    file = Path(made.temporary) / "cluster.json"
    file.write_text(json.dumps(configuration(made.address)))
    head = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0"),
            *(
                f"--port={gcs}",
                f"--ray-client-server-port={client}",
                f"--dashboard-agent-listen-port={agent}",
            ),
            *("--include-dashboard=false", "--disable-usage-stats", f"--object-store-memory={100 * 2**20}"),
            *(f"--autoscaling-config={file}", f"--temp-dir={made.temporary}"),
        ],
        env={
            **os.environ,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: listens(gcs), 60, "the head")
        wait_for(lambda: connects(made.address), 120, "the head's node")
        yield made
    finally:
        ray.shutdown()
        head.kill()
        made.kill()
        head.wait(10)


def listens(port: int) -> bool:
    """Whether somebody does."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def connects(address: str) -> bool:
    """Whether this process could be connected."""
    import ray

    with contextlib.suppress(ConnectionError):
        ray.init(address=address, log_to_driver=False)
        return True
    return False


class Watch:
    """Samples the nodes and what is held of them."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        import ray

        while not self._ended.wait(0.5):
            nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
            free = ray.available_resources().get("CPU", 0.0)
            self.samples.append((time.monotonic(), len(nodes), len(nodes) - free))

    def nodes(self) -> int:
        """How many there are now."""
        return self.samples[-1][1] if self.samples else 0

    def end(self) -> dict[str, Any]:
        """What was seen."""
        self._ended.set()
        self._thread.join()
        pairs = list(zip(self.samples, self.samples[1:], strict=False))
        spans = [(later[0] - sample[0], sample) for sample, later in pairs]
        course = [self.samples[0][1]]
        for _, nodes, _ in self.samples:
            if nodes != course[-1]:
                course.append(nodes)
        return {
            "course": course,
            "most": max(course),
            "node_seconds": round(sum(span * sample[1] for span, sample in spans), 1),
            "held_seconds": round(sum(span * sample[2] for span, sample in spans), 1),
        }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run it, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gangs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary, autoscaling() as cluster:
        place = Path(temporary)
        raw = small_sweep(
            place,
            "grown",
            training={"epochs": 1, "log_every": 10},
            search={"trials": options.trials},
            resources={"max_concurrent": options.gangs},
        )
        file = place / "sweep.yaml"
        file.write_text(yaml.safe_dump(raw))
        # Wider than the largest kind of node: refused at once, with the reason.
        refused = cluster.drive(
            "run", file, "--storage", place, "--set", "resources.cpus_per_worker=2", supervised=False
        )
        said = refused.communicate(timeout=300)[0]
        watch = Watch()
        began = time.monotonic()
        sweep = cluster.drive("run", file, "--storage", place, supervised=False)
        log = sweep.communicate(timeout=1200)[0]
        took_s = time.monotonic() - began
        gone_s = wait_for(lambda: watch.nodes() == 0, 180, "the last node gone")
        found = {
            "refused": [refused.returncode, said[-300:]],
            "code": sweep.returncode,
            "log": log[-2000:],
            "seconds": round(took_s, 1),
            "gone_s": round(gone_s, 1),
            **watch.end(),
        }
    tell(found, options.out)
    return found


if __name__ == "__main__":
    main()
