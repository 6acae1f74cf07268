"""Connecting to Ray: to a cluster that stands, or to one that starts and stops with the sweep."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.capacity import attainable

NODE_TYPES = "THAW_NODE_TYPES"
_MAX_NODES = 10_000
_OBJECT_STORE_BYTES = 256 * 2**20
_PROBE_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


def local_node() -> dict[str, float]:
    """What a local cluster would have, without starting one."""
    return {"CPU": float(_local_cpus()), "GPU": float(_local_gpus())}


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Sequence[Mapping[str, float]]]:
    """Connect to the Ray cluster at `address`, or start one on this machine; yields its nodes' resources.

    A cluster that was started here is gone at the end, with every process in it.

    Raises:
        ValueError: if there is no cluster at `address`.
        OSError: if none starts on this machine.
    """
    if address is not None:
        _require_listener(address)
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # the behaviour to come; silences a warning
    import ray

    # What workers and raylets say belongs in their log files, not in the middle of the live table.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if address is None:
        try:
            ray.init(
                address="local",
                num_cpus=_local_cpus(),
                # Nothing of size goes through it.
                object_store_memory=_OBJECT_STORE_BYTES,
                # Ray frees the resources of a gang whose owner was killed through the dashboard's State API.
                include_dashboard=True,
                **quiet,
            )
        except Exception as error:  # Ray raises it bare
            raise _not_started(error) from error
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise _no_cluster(address, reason) from error
    log.debug("connected")
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def possible_nodes() -> list[Mapping[str, float]]:
    """Resources of the connected cluster's nodes, with those that its autoscaler may yet start.

    Ray does not tell the latter: the variable `THAW_NODE_TYPES` of the head's environment does, as JSON:
    `[{"name": "workers-0", "CPU": 8, "GPU": 1, "max": 4}]`. `thaw cluster render` writes it.

    Raises:
        ValueError: if the variable cannot be read.
    """
    import ray

    nodes = [
        ((node.get("Labels") or {}).get("ray.io/node-group", ""), node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]
    return attainable(nodes, _node_types(os.environ.get(NODE_TYPES, "[]")))


def _node_types(text: str) -> dict[str, tuple[Mapping[str, float], int]]:
    try:
        return {
            str(kind["name"]): (
                {name: float(kind.get(name, 0)) for name in ("CPU", "GPU")},
                min(int(kind["max"]), _MAX_NODES),
            )
            for kind in json.loads(text)
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f'{NODE_TYPES}: must be such as [{{"name": "workers-0", "CPU": 8, "max": 4}}], got {text[:80]!r}'
        ) from error


def _require_listener(address: str) -> None:
    """Check that somebody listens at HOST:PORT or ray://HOST:PORT: Ray itself tries for many minutes.

    Raises:
        ValueError: if nobody does.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        if address == "auto":  # Ray looks for one on this machine
            return
        raise _no_cluster(address, "it is neither HOST:PORT nor auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_TIMEOUT_S).close()
    except ValueError:
        raise _no_cluster(address, f"{port!r} is not a port") from None
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, getattr(error, "strerror", None) or str(error)) from error


def _no_cluster(address: str, reason: str) -> ValueError:
    return ValueError(
        f"--address: no Ray cluster at {address!r} ({reason}); give the address that `ray start --head` "
        f"printed, or leave it out to run on this machine"
    )


def _not_started(error: Exception) -> OSError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    logs = os.path.join(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs")
    return OSError(
        f"Ray did not start on this machine ({reason}): it needs free memory, room in its directory and "
        f"processor time in its first seconds; end what else runs here and try again, or give the --address "
        f"of a cluster that stands (Ray's own words are in {logs})"
    )


def _local_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def _local_gpus() -> int:
    """NVIDIA GPUs that Ray would see here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True)
        return len(listed.stdout.splitlines())
    return 0
