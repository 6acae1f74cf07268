"""How many gangs fit."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cluster.capacity import GangShape, attainable, gangs_that_fit, require_fit, workers_on


def shape(workers: int = 1, cpus: float = 1, gpus: float = 0.0) -> GangShape:
    return GangShape(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)


def node(cpus: float, gpus: float = 0.0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, "memory": 1e9}


@pytest.mark.parametrize(
    ("resources", "asked", "fit"),
    [
        (node(4), shape(), 4),
        (node(4), shape(cpus=3), 1),
        (node(2), shape(cpus=3), 0),
        (node(8, 2), shape(gpus=1), 2),
        (node(1, 2), shape(gpus=1), 1),
        (node(8, 1), shape(gpus=0.25), 4),
        (node(8, 1), shape(gpus=0.1), 8),
        (node(8, 2), shape(gpus=0.4), 4),  # a fraction cannot lie on two of them
        (node(8, 1.5), shape(gpus=0.5), 3),
        (node(2), shape(cpus=0.5), 4),
        (node(8, 0.3), shape(gpus=0.1), 3),  # 0.3 / 0.1 is a little less than 3 in floats
        (node(8), shape(gpus=1), 0),
        ({"memory": 1e9}, shape(), 0),  # a node that runs no tasks, such as a head that is kept free
    ],
)
def test_workers_on_a_node(resources: dict[str, float], asked: GangShape, fit: int) -> None:
    assert workers_on(resources, asked) == fit


@pytest.mark.parametrize(
    ("nodes", "asked", "fit"),
    [
        ([], shape(), 0),
        ([node(2)], shape(), 2),
        ([node(2)], shape(workers=2), 1),
        ([node(1), node(1)], shape(workers=2), 1),  # a gang may span nodes
        ([node(1), node(1)], shape(cpus=2), 0),  # a worker may not
        ([node(3), node(3)], shape(workers=2, cpus=2), 1),  # one CPU of each stays idle
        ([node(64, 8), node(64, 8)], shape(workers=4, cpus=8, gpus=1), 4),
        ([node(64), node(64, 8)], shape(workers=4, gpus=1), 2),
    ],
)
def test_gangs_on_a_cluster(nodes: list[dict[str, float]], asked: GangShape, fit: int) -> None:
    assert gangs_that_fit(nodes, asked) == fit
    if fit:
        assert require_fit(nodes, asked) == fit


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        (
            [node(4)],
            shape(workers=64),
            "resources: a trial needs 64 workers with 1 CPU each, and the cluster has 4 CPUs and 0 GPUs "
            "on 1 node; set resources.workers to at most 4",
        ),
        (
            [node(4), node(4)],
            shape(workers=2, cpus=8),
            "resources: a trial needs 2 workers with 8 CPUs each, and the cluster has 8 CPUs and 0 GPUs "
            "on 2 nodes; ask for less per worker, or add nodes",
        ),
        (
            [node(1, 1)],
            shape(workers=2, cpus=1, gpus=0.5),
            "resources: a trial needs 2 workers with 1 CPU and 0.5 GPUs each, and the cluster has 1 CPU and "
            "1 GPU on 1 node; set resources.workers to at most 1",
        ),
        (
            [],
            shape(gpus=2),
            "resources: a trial needs 1 worker with 1 CPU and 2 GPUs, and the cluster has 0 CPUs and 0 GPUs "
            "on 0 nodes; ask for less per worker, or add nodes",
        ),
    ],
)
def test_what_never_fits_says_what_would(
    nodes: list[dict[str, float]], asked: GangShape, message: str
) -> None:
    with pytest.raises(ValueError, match=r"^resources: ") as caught:
        require_fit(nodes, asked)
    assert str(caught.value) == message


def test_nodes_that_may_yet_come_count() -> None:
    small, large = {"CPU": 1.0}, {"CPU": 4.0}
    groups = {"small": (small, 3), "large": (large, 1), "head": ({"CPU": 2.0}, 0)}
    there: list[tuple[str, Mapping[str, float]]] = [
        ("head", {"CPU": 2.0}),
        ("", {"CPU": 8.0}),
        ("small", small),
    ]
    assert sorted(node["CPU"] for node in attainable(there, groups)) == [1, 1, 1, 2, 4, 8]
    assert attainable([("a", small)], {}) == [small]  # no autoscaler
    assert len(attainable([("small", small)] * 5, groups)) == 6  # more than there may be now


def test_a_gang_that_fits_with_fewer_workers_runs_alone() -> None:
    shape = GangShape(workers=4, cpus_per_worker=1, gpus_per_worker=0, fewest_workers=2)
    assert require_fit([{"CPU": 8.0}], shape) == 2
    assert require_fit([{"CPU": 3.0}], shape) == 1
    with pytest.raises(ValueError, match="a trial needs"):
        require_fit([{"CPU": 1.0}], shape)
