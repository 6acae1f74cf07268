"""How many workers a gang gets."""

from __future__ import annotations

import socket

import pytest
import ray

from training.gang.scaling import group_size, room, unreachable

WORKER = {"CPU": 2.0, "GPU": 1.0}


def test_room_counts_whole_workers_node_by_node() -> None:
    nodes = [{"CPU": 5.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 8.0}, {"CPU": 1.9, "GPU": 1.0}]
    assert room(nodes, WORKER) == 2
    assert room(nodes, {"CPU": 2.0}) == 2 + 1 + 4
    assert room([], WORKER) == 0
    assert room([{"CPU": 1.0, "GPU": 0.5}], {"CPU": 0.0, "GPU": 0.25}) == 2


@pytest.mark.parametrize(("fits", "size"), [(9, 4), (4, 4), (3, 3), (2, 2), (1, 2), (0, 2)])
def test_a_group_takes_what_fits_and_waits_for_the_fewest(fits: int, size: int) -> None:
    assert group_size(fits, 2, 4) == size


def test_a_node_that_is_gone_is_known_before_ray_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as alive, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # nobody listens
        nodes = [
            {"NodeID": "here", "Alive": True, "NodeManagerPort": alive.getsockname()[1]},
            {"NodeID": "gone", "Alive": True, "NodeManagerPort": dead.getsockname()[1]},
            {"NodeID": "known", "Alive": False, "NodeManagerPort": dead.getsockname()[1]},
        ]
        monkeypatch.setattr(
            ray, "nodes", lambda: [node | {"NodeManagerAddress": "127.0.0.1"} for node in nodes]
        )
        assert unreachable() == {"gone"}
