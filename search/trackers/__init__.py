"""Trackers: where a sweep's results are streamed to. Importing this does not import wandb.

A tracker is a class with the methods of `Tracker`, a frozen dataclass of its settings in
`base.py`, and a line in `TRACKERS`, which also puts it under the contract test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from search.trackers.base import (
    Composite,
    JsonlConfig,
    NoTracker,
    Run,
    Seen,
    Tracker,
    Value,
    WandbConfig,
)
from search.trackers.jsonl import JsonlTracker
from search.trackers.wandb import WandbTracker

TRACKERS: dict[str, Callable[[Any], Tracker]] = {
    "jsonl": JsonlTracker,
    "wandb": WandbTracker,
}
"""What `tracking` may name in a sweep file -> what makes the tracker from its settings."""


def build(settings: Mapping[str, object | None]) -> Composite:
    """The trackers named in `settings`, as one; `None` stands for a tracker that is off.

    Raises:
        ValueError: Where a name is unknown.
    """
    for name in settings:
        if name not in TRACKERS:
            raise ValueError(
                f"tracking.{name}: unknown tracker; one of {', '.join(sorted(TRACKERS))} is right"
            )
    return Composite(TRACKERS[name](config) for name, config in settings.items() if config is not None)


__all__ = [
    "TRACKERS",
    "Composite",
    "JsonlConfig",
    "JsonlTracker",
    "NoTracker",
    "Run",
    "Seen",
    "Tracker",
    "Value",
    "WandbConfig",
    "WandbTracker",
    "build",
]
