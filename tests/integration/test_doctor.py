"""`doctor` on a real cluster: probes on its nodes, an all-reduce, and that it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import ray

from cluster.capacity import GangShape
from cluster.doctor.checks import Health, examine
from cluster.doctor.facts import Brought, Need
from cluster.doctor.gather import gather
from search.examination import examination
from search.spec import SweepSpec
from tests.processes import wait_for
from training import probes


def test_a_healthy_cluster_and_one_that_is_not(
    make_spec: Callable[..., SweepSpec], ray_nodes: Sequence[Mapping[str, float]], tmp_path: Path
) -> None:
    spec = make_spec()
    storage = tmp_path / "runs"
    shape = GangShape(workers=2, cpus_per_worker=1, gpus_per_worker=0)
    with examination(spec, storage) as wanted:
        assert set(wanted.probes) == {"storage", "model", "data"}
        assert wanted.tracking is None  # it is off in this sweep
        assert wanted.disk_bytes is not None
        assert 10**8 < wanted.disk_bytes < 10**11
        need = Need(shape=shape, disk_bytes=wanted.disk_bytes, storage_free_bytes=10**12)
        verdicts = examine(
            gather(Brought(probes=wanted.probes, reduce=probes.all_reduce, tracking=None, need=need))
        )
    assert not storage.exists()  # nothing is left behind
    red = {name: verdict for name, verdict in verdicts.items() if verdict.health is Health.RED}
    # What depends on the machine that the tests run on may well be wrong there.
    assert not red.keys() - {"disk space", "shared memory", "clocks"}, red
    for name in ("nodes", "versions", "State API", "storage", "model", "data", "all-reduce", "orphans"):
        assert verdicts[name].health is Health.GREEN, verdicts[name]
    assert "gloo, 2 workers: " in verdicts["all-reduce"].said
    assert "160 examples" in verdicts["data"].said

    # The driver's token is not where the node looks: its storage is another one.
    broken = {
        "storage": partial(probes.storage, str(tmp_path), ".probe-of-nobody"),
        "data": partial(probes.data, spec.model, spec.task, make_spec(data={"train": "gone"}).data),
    }
    alone = Need(shape=GangShape(workers=1, cpus_per_worker=1, gpus_per_worker=0))
    verdicts = examine(
        gather(Brought(probes=broken, reduce=probes.all_reduce, tracking=(False, "no key"), need=alone))
    )
    assert verdicts["storage"].health is Health.RED
    assert "is not the one that the driver sees" in verdicts["storage"].said
    assert verdicts["data"].health is Health.RED
    assert "data.train" in verdicts["data"].said
    assert verdicts["model"].health is verdicts["all-reduce"].health is Health.SKIPPED
    assert verdicts["W&B"].said == "no key"
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 30, "free CPUs")
