"""How a worker makes itself ready."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from training import memory
from training.gang import workers
from training.gang.messages import GangConfig
from training.team import Team

TOTAL = 80 * 10**9


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, team: Team) -> Iterator[None]:
    """Its gang is this process, which gets its threads back."""
    monkeypatch.setattr("training.gang.meeting.meet", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def config(cpus: float, gpus: float = 0.0) -> GangConfig:
    return GangConfig(workers=1, cpus_per_worker=cpus, gpus_per_worker=gpus, storage="/nowhere")


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1.0, 1), (2.0, 2), (3.5, 3)])
def test_it_computes_on_the_cores_that_it_owns(cpus: float, threads: int) -> None:
    workers._ready(config(cpus))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("gpus", "parts"), [(0.25, [memory.fraction(0.25, TOTAL)]), (1.0, []), (2.0, [])])
def test_it_takes_no_more_than_its_share_of_a_gpu(
    gpus: float, parts: list[float], team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []
    monkeypatch.setattr("training.team.Team", lambda: team)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=TOTAL)
    )
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    workers._ready(config(1.0, gpus))
    assert taken == parts
