"""The checks: each a pure function from facts to a verdict, with a fix for what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cluster.doctor.facts import Facts, NodeFacts

_MAX_SKEW_S = 1.0
_MIN_SHM_BYTES = 512 * 2**20
_MIN_DISK_BYTES = 2 * 10**9
_BUSY_SHARE = 0.1
"""Share of a GPU's memory that may be taken before it counts as in use."""


class Health(StrEnum):
    """How a check came out. Only RED fails."""

    GREEN = "green"
    YELLOW = "yellow"
    """It works, but not as well as it should."""
    RED = "red"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check says."""

    health: Health
    said: str
    fix: str = ""


def _green(said: str) -> Verdict:
    return Verdict(health=Health.GREEN, said=said)


def _red(said: str, fix: str) -> Verdict:
    return Verdict(health=Health.RED, said=said, fix=fix)


def _yellow(said: str, fix: str) -> Verdict:
    return Verdict(health=Health.YELLOW, said=said, fix=fix)


def _skipped(why: str) -> Verdict:
    return Verdict(health=Health.SKIPPED, said=why)


def nodes(facts: Facts) -> Verdict:
    """Every node answers."""
    if facts.silent:
        said = "; ".join(f"{host}: {why}" for host, why in facts.silent.items())
        return _red(said, "look at the node's raylet.err, or remove the node: `ray stop` there")
    return _green(_count(len(facts.nodes), "node"))


def versions(facts: Facts) -> Verdict:
    """Ray, Python and Thaw are the same everywhere."""
    wrong = [
        f"{node.host} has {name} {node.versions.get(name, 'not installed')}"
        for node in facts.nodes
        for name, ours in facts.versions.items()
        if not _same(name, node.versions.get(name), ours)
    ]
    ours = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    if wrong:
        return _red(f"{_some(wrong)}; here: {ours}", "install the same versions on all nodes, in one image")
    return _green(ours)


def state_api(facts: Facts) -> Verdict:
    """Ray's State API answers: Ray frees the resources of dead gangs through it, and `submit` needs it."""
    if not facts.state_api.ok:
        return _red(
            facts.state_api.said,
            "install `ray[default]` on the head and start it with --include-dashboard=true",
        )
    return _green(facts.state_api.said)


def storage(facts: Facts) -> Verdict:
    """Every node can write to the storage and read back what it wrote."""
    return _probed(
        facts,
        "storage",
        "give a --storage that all nodes see: a mounted directory, or a bucket that they may write to",
    )


def model(facts: Facts) -> Verdict:
    """Every node has the model, or can get it."""
    return _probed(
        facts, "model", "put the model where all nodes see it, or let them reach the hub (HF_TOKEN)"
    )


def data(facts: Facts) -> Verdict:
    """Every node can read the data."""
    return _probed(facts, "data", "put the data where all nodes see it, under the same path")


def gpus(facts: Facts) -> Verdict:
    """The GPUs that Ray hands out are there, and free."""
    missing, busy = [], []
    for node in facts.nodes:
        if node.gpus_promised > len(node.gpus):
            missing.append(
                f"{node.host}: Ray hands out {node.gpus_promised:g}, its driver sees {len(node.gpus)}"
            )
        used = [gpu for gpu in node.gpus if gpu.used_bytes > _BUSY_SHARE * gpu.total_bytes]
        if used:
            taken = sum(gpu.used_bytes for gpu in used)
            busy.append(f"{node.host}: {_count(len(used), 'GPU')} in use, {_size(taken)} taken")
    found = sum(len(node.gpus) for node in facts.nodes)
    shape = facts.need.shape
    if missing:
        return _red(_some(missing), "check `nvidia-smi` there; start the container with the GPUs")
    if shape is not None and shape.gpus_per_worker and not found:
        return _red(
            "the sweep asks for GPUs and there are none", "set resources.gpus_per_worker to 0, or add nodes"
        )
    if busy:
        return _yellow(_some(busy), "end what holds them (`nvidia-smi`), or expect to run out of memory")
    return _green(_count(found, "GPU")) if found else _skipped("no GPUs")


def all_reduce(facts: Facts) -> Verdict:
    """The workers of a gang reach each other."""
    if not facts.all_reduce.ok:
        return _red(
            facts.all_reduce.said,
            "open all ports between nodes; with several networks set NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME",
        )
    return _green(facts.all_reduce.said) if facts.gigabytes_per_s else _skipped(facts.all_reduce.said)


def tracking(facts: Facts) -> Verdict:
    """W&B can be reached, and takes the key."""
    if facts.tracking is None:
        return _skipped("off")
    if not facts.tracking.ok:
        return _yellow(
            facts.tracking.said,
            "set WANDB_API_KEY or call `wandb login`; runs are written offline until then",
        )
    return _green(facts.tracking.said)


def clocks(facts: Facts) -> Verdict:
    """The nodes' clocks agree: logs, tokens and signed requests depend on it."""
    wrong = [
        f"{node.host}: {node.skew_s:+.1f} s"
        for node in facts.nodes
        if abs(node.skew_s) - node.skew_error_s > _MAX_SKEW_S
    ]
    if wrong:
        return _red(_some(wrong), "set the clocks with NTP (`chronyc makestep`)")
    worst = max((abs(node.skew_s) for node in facts.nodes), default=0.0)
    return _green(f"within {worst:.2f} s")


def disk(facts: Facts) -> Verdict:
    """There is room for what the sweep keeps, and for Ray's session on every node."""
    full = [
        f"{node.host}: {_size(node.disk_free_bytes)} free"
        for node in facts.nodes
        if node.disk_free_bytes < _MIN_DISK_BYTES
    ]
    if full:
        return _red(
            _some(full),
            f"make room where Ray has its session (RAY_TMPDIR): {_size(_MIN_DISK_BYTES)} at least",
        )
    need, free = facts.need.disk_bytes, facts.need.storage_free_bytes
    if need is not None and free is not None and need > free:
        return _red(
            f"the sweep keeps up to {_size(need)}, and the storage has {_size(free)} free",
            "make room, lower checkpoints.keep, or give another --storage",
        )
    wanted = f", the sweep keeps up to {_size(need)}" if need is not None else ""
    least = min((node.disk_free_bytes for node in facts.nodes), default=0)
    there = (
        f"{_size(free)} free in the storage" if free is not None else "the storage has no limit that is known"
    )
    return _green(f"{there}{wanted}; {_size(least)} free on the fullest node")


def shared_memory(facts: Facts) -> Verdict:
    """/dev/shm is large enough for Ray's object store and NCCL."""
    small = [
        f"{node.host}: {_size(node.shm_bytes)}" for node in facts.nodes if node.shm_bytes < _MIN_SHM_BYTES
    ]
    if small:
        return _red(
            _some(small), "start containers with --shm-size=2g, pods with a Memory volume on /dev/shm"
        )
    return _green(f"{_size(min((node.shm_free_bytes for node in facts.nodes), default=0))} free at least")


def orphans(facts: Facts) -> Verdict:
    """No resources are held for jobs that have ended."""
    if not facts.state_api.ok:
        return _skipped("the State API does not answer")
    if facts.orphans:
        return _red(
            f"{_count(len(facts.orphans), 'placement group')} of ended jobs: {_some(facts.orphans)}",
            "remove them: ray.util.remove_placement_group, or restart the cluster",
        )
    return _green("none")


CHECKS: dict[str, Callable[[Facts], Verdict]] = {
    "nodes": nodes,
    "versions": versions,
    "State API": state_api,
    "storage": storage,
    "model": model,
    "data": data,
    "GPUs": gpus,
    "all-reduce": all_reduce,
    "W&B": tracking,
    "clocks": clocks,
    "disk space": disk,
    "shared memory": shared_memory,
    "orphans": orphans,
}
"""Every check by its name, in the order of the table."""


def examine(facts: Facts) -> dict[str, Verdict]:
    """All verdicts by name."""
    return {name: check(facts) for name, check in CHECKS.items()}


def as_json(verdicts: dict[str, Verdict]) -> dict[str, Any]:
    """For `--json`."""
    red = any(verdict.health is Health.RED for verdict in verdicts.values())
    return {"ok": not red, "checks": [{"check": name, **asdict(v)} for name, v in verdicts.items()]}


def _probed(facts: Facts, name: str, fix: str) -> Verdict:
    results = [(node, node.probes[name]) for node in facts.nodes if name in node.probes]
    if not results:
        return _skipped("give a sweep to check it")
    wrong = [f"{node.host}: {found.said}" for node, found in results if not found.ok]
    return _red(_some(wrong), fix) if wrong else _green(f"{results[0][1].said}; {_on(facts.nodes)}")


def _on(nodes: Iterable[NodeFacts]) -> str:
    number = len(list(nodes))
    return "on the one node" if number == 1 else f"on all {number} nodes"


def _same(name: str, theirs: str | None, ours: str) -> bool:
    if theirs is None:
        return False
    # Pickles of one minor release of Python are read by all of it.
    return theirs == ours if name != "python" else theirs.rpartition(".")[0] == ours.rpartition(".")[0]


def _some(parts: Iterable[str], limit: int = 3) -> str:
    listed = list(parts)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return "; ".join(listed[:limit]) + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
