"""A sweep file that is right, to be changed in places, and what is said of one that is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from search.problems import SpecError
from search.spec import parse

GOOD: dict[str, Any] = {
    "name": "test",
    "model": {"name": "some/model"},
    "data": {"train": "train.csv", "validation": "validation.csv"},
    "parameters": {
        "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 3e-3},
        "batch_size": {"values": [16, 32, 64]},
        "unfreezing.schedule": {"values": ["head", "top", "gradual", "full"]},
        "unfreezing.depth": {"min": 1, "max": 6, "when": {"unfreezing.schedule": ["top", "gradual"]}},
    },
    "search": {"metric": {"name": "eval/accuracy", "goal": "maximize"}},
}


def changed(**settings: Any) -> dict[str, Any]:
    """GOOD with dotted paths set; `__` stands for the dot. Keys of `parameters` are whole."""
    raw = copy.deepcopy(GOOD)
    for name, value in settings.items():
        first, *rest = name.split("__")
        place, last = raw, first
        if first == "parameters" and rest:
            place, last = raw["parameters"], ".".join(rest)
        else:
            for part in rest:
                place, last = place.setdefault(last, {}), part
        place[last] = value
    return raw


def problems(raw: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(raw)
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return list(caught.value.problems)
