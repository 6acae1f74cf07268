"""How many trials share a GPU."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from search import loading, memory
from search.config import ResourcesConfig
from search.memory import Row
from search.packing import MOST, decided, packing
from training.memory import CONTEXT_BYTES, MemoryEstimate, fraction

GB = 10**9
NONE = {field.name: 0 for field in fields(MemoryEstimate) if field.name != "moment"}


def rows(*device_bytes: int) -> list[Row]:
    nothing = MemoryEstimate(moment="step", **NONE)
    first = Row(
        schedule="top", phase="top-1", thawed="1 block", model="m", micro_batch=1, tokens=1, memory=nothing
    )
    return [replace(first, memory=replace(nothing, weights=size)) for size in device_bytes]


def auto(**settings: Any) -> ResourcesConfig:
    return ResourcesConfig(gpus_per_worker="auto", **settings)


def test_the_largest_phase_decides_the_share() -> None:
    # 1.25 x 4 GB, and what CUDA takes: 3 of them fit into 20 GB, 4 do not.
    found = packing(auto(), rows(GB, 4 * GB, 2 * GB), 20 * GB)
    assert found.a_gpu == 3
    assert found.gpus_per_worker == 0.3333
    assert found.reason == "schedule top, phase top-1 needs 4,000 MB, and a GPU has 20,000 MB"


@pytest.mark.parametrize("need", [10**6, GB // 3, GB, 3 * GB, 9 * GB, 30 * GB, 200 * GB])
@pytest.mark.parametrize("total", [8 * GB, 24 * GB, 80 * GB])
def test_what_is_packed_fits_with_what_cuda_takes(need: int, total: int) -> None:
    found = packing(auto(), rows(need), total)
    assert 1 <= found.a_gpu <= MOST
    if found.a_gpu > 1:
        part = fraction(found.gpus_per_worker, total) * total
        assert need <= part
        assert found.a_gpu * (part + CONTEXT_BYTES) <= total + 1
        assert found.a_gpu * found.gpus_per_worker <= 1


def test_a_small_share_still_has_half_of_it_for_tensors() -> None:
    assert fraction(0.125, 2 * GB) == 0.0625


def test_gpus_are_whole_where_nothing_is_known_or_workers_are_several() -> None:
    assert packing(auto(), rows(GB), None).gpus_per_worker == 1
    several = packing(auto(workers=2), rows(GB), 80 * GB)
    assert (several.gpus_per_worker, several.reason) == (1, "the workers of one trial cannot share a GPU")


def test_what_is_decided_for_a_sweep() -> None:
    """Only `auto` looks at the GPUs."""

    def unknown() -> int:
        raise AssertionError

    spec = loading.load("quickstart", [])
    assert decided(spec, unknown) == 0.0
    shared = loading.load("quickstart", ["resources.gpus_per_worker=auto"])
    phases = memory.rows(shared)
    for size in (None, 8 * GB, 24 * GB):
        expected = packing(shared.resources, phases, size).gpus_per_worker
        assert decided(shared, lambda size=size: size) == expected  # type: ignore[misc]
    assert decided(shared, lambda: 24 * GB) < decided(shared, lambda: 8 * GB) < decided(shared, lambda: None)


@pytest.mark.parametrize(("asked", "trials"), [(0.0, 0), (0.1, 10), (0.25, 4), (0.4, 2), (1.0, 1), (2.0, 0)])
def test_a_number_is_taken_as_it_is(asked: float, trials: int) -> None:
    found = packing(ResourcesConfig(gpus_per_worker=asked), rows(), 80 * GB)
    assert (found.gpus_per_worker, found.a_gpu, found.reason) == (asked, trials, "")
