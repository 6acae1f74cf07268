"""Verdicts are functions of facts: a healthy cluster is green, and each thing that can be wrong is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.capacity import GangShape
from cluster.doctor.checks import CHECKS, Health, as_json, examine
from cluster.doctor.facts import Facts, Found, Need, NodeFacts
from cluster.gpus import Gpu

VERSIONS = {"ray": "2.60.0", "python": "3.11.7", "thaw": "0.1.0"}
OK = Found(ok=True, said="fine")
GPU = Gpu(name="A100", used_bytes=0, total_bytes=80 * 10**9)
NODE = NodeFacts(
    host="a",
    versions=VERSIONS,
    skew_s=0.01,
    skew_error_s=0.001,
    shm_bytes=8 * 10**9,
    shm_free_bytes=7 * 10**9,
    disk_free_bytes=100 * 10**9,
    gpus_promised=1,
    gpus=(GPU,),
    probes={"storage": OK, "model": OK, "data": OK},
)
SHAPE = GangShape(workers=2, cpus_per_worker=1, gpus_per_worker=1)
HEALTHY = Facts(
    versions=VERSIONS,
    nodes=(NODE, replace(NODE, host="b", versions={**VERSIONS, "python": "3.11.9"})),
    silent={},
    state_api=OK,
    orphans=(),
    all_reduce=Found(ok=True, said="nccl, 2 workers: 9.00 GB/s"),
    gigabytes_per_s=9.0,
    tracking=OK,
    need=Need(shape=SHAPE, disk_bytes=10**9, storage_free_bytes=10**11),
)


def node(**changes: Any) -> dict[str, Any]:
    """Facts of a cluster whose second node is like this."""
    return {"nodes": (NODE, replace(NODE, host="b", **changes))}


def failing(name: str, said: str) -> dict[str, Any]:
    return node(probes={**NODE.probes, name: Found(ok=False, said=said)})


RED = [
    ("nodes", {"silent": {"c": "raylet died"}}, "c: raylet died"),
    ("versions", node(versions={**VERSIONS, "ray": "2.59.0"}), "b has ray 2.59.0"),
    ("versions", node(versions={**VERSIONS, "python": "3.12.1"}), "b has python 3.12.1"),
    ("versions", node(versions={"ray": "2.60.0", "python": "3.11.7"}), "b has thaw not installed"),
    ("State API", {"state_api": Found(ok=False, said="no dashboard")}, "no dashboard"),
    ("storage", failing("storage", "Permission denied"), "b: Permission denied"),
    ("model", failing("model", "no such model"), "b: no such model"),
    ("data", failing("data", "no such file"), "b: no such file"),
    ("GPUs", node(gpus=()), "b: Ray hands out 1, its driver sees 0"),
    ("GPUs", {"nodes": (replace(NODE, gpus=(), gpus_promised=0),)}, "the sweep asks for GPUs"),
    ("all-reduce", {"all_reduce": Found(ok=False, said="timed out"), "gigabytes_per_s": None}, "timed out"),
    ("clocks", node(skew_s=-30.0, skew_error_s=0.1), "b: -30.0 s"),
    ("disk space", node(disk_free_bytes=10**8), "b: 100 MB free"),
    ("disk space", {"need": replace(HEALTHY.need, storage_free_bytes=10**8)}, "keeps up to 1.0 GB"),
    ("shared memory", node(shm_bytes=64 * 2**20), "b: 67 MB"),
    ("orphans", {"orphans": ("ab12",)}, "1 placement group of ended jobs: ab12"),
]


def test_a_healthy_cluster_is_green() -> None:
    verdicts = examine(HEALTHY)
    assert {name: verdict.health for name, verdict in verdicts.items()} == dict.fromkeys(CHECKS, Health.GREEN)
    assert as_json(verdicts)["ok"] is True
    assert verdicts["all-reduce"].said.endswith("9.00 GB/s")
    assert verdicts["storage"].said == "fine; on all 2 nodes"


@pytest.mark.parametrize(("check", "changes", "said"), RED)
def test_what_is_wrong_is_red_with_a_fix(check: str, changes: dict[str, Any], said: str) -> None:
    verdicts = examine(replace(HEALTHY, **changes))
    assert verdicts[check].health is Health.RED
    assert said in verdicts[check].said
    assert verdicts[check].fix
    assert as_json(verdicts)["ok"] is False


def test_every_check_can_be_red_or_is_said_to_be_only_a_warning() -> None:
    assert CHECKS.keys() - {name for name, _, _ in RED} == {"W&B"}


def test_what_only_slows_or_hides_is_yellow() -> None:
    lost = examine(replace(HEALTHY, tracking=Found(ok=False, said="no key")))
    assert lost["W&B"].health is Health.YELLOW
    busy = examine(replace(HEALTHY, **node(gpus=(replace(GPU, used_bytes=40 * 10**9),))))
    assert busy["GPUs"].health is Health.YELLOW
    assert "b: 1 GPU in use, 40.0 GB taken" in busy["GPUs"].said
    assert as_json(lost)["ok"] is as_json(busy)["ok"] is True


def test_a_clock_that_cannot_be_read_well_enough_is_not_blamed() -> None:
    assert examine(replace(HEALTHY, **node(skew_s=3.0, skew_error_s=2.9)))["clocks"].health is Health.GREEN


def test_without_a_sweep_its_checks_are_skipped() -> None:
    bare = replace(
        HEALTHY, nodes=(replace(NODE, probes={"storage": OK}, gpus=(), gpus_promised=0),), need=Need()
    )
    verdicts = examine(replace(bare, tracking=None, gigabytes_per_s=None))
    skipped = {name for name, verdict in verdicts.items() if verdict.health is Health.SKIPPED}
    assert skipped == {"model", "data", "GPUs", "all-reduce", "W&B"}
