"""Which boundaries a sweep may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from search.foresight import boundaries
from search.spec import parse
from tests.conftest import MODEL


def found(parameters: dict[str, Any], **training: Any) -> tuple[int, ...]:
    raw = {
        "name": "foresight",
        "model": {"name": MODEL},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "training": training,
        "parameters": parameters,
        "search": {"metric": {"name": "eval/accuracy", "goal": "maximize"}},
    }
    return boundaries(parse(raw), num_blocks=6)


def test_all_depths_of_all_schedules() -> None:
    schedule = {"values": ["head", "top", "full"]}
    depth = {"distribution": "int_uniform", "min": 2, "max": 4, "when": {"unfreezing.schedule": ["top"]}}
    assert found({"unfreezing.schedule": schedule, "unfreezing.depth": depth}) == (2, 3, 4, 6)


def test_every_phase_counts() -> None:
    fixed = {"schedule": "gradual", "depth": 2}
    rate = {"values": [1e-4, 1e-3]}
    assert found({"learning_rate": rate}, unfreezing=fixed) == (4, 5, 6)


@pytest.mark.parametrize("schedule", ["full", "bottom-up"])
def test_none_where_the_lowest_layers_train(schedule: str) -> None:
    assert 1 not in found(
        {"learning_rate": {"values": [1e-4]}}, unfreezing={"schedule": schedule, "depth": 1}
    )


def test_what_does_not_go_together_is_passed_over() -> None:
    depth = {"values": [1, 9]}
    assert found({"unfreezing.depth": depth}, unfreezing={"schedule": "top"}) == (5,)
