"""Forecasts as they are kept: beside the cache until the sweep begins, in its directory from then on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from search.loading import to_yaml
from search.spec import SweepSpec

FORECAST_FILE = "forecast.json"


def keep(spec: SweepSpec, cache: Path, forecast: Mapping[str, Any]) -> None:
    """Keep what was foretold of a sweep file, for the sweep that it begins."""
    place = _place(spec, cache)
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_suffix(".draft")
    draft.write_text(json.dumps(forecast, indent=1))
    draft.rename(place)


def adopt(spec: SweepSpec, cache: Path, directory: Path) -> None:
    """Give a sweep that begins what was foretold of its file, if anything was."""
    with suppress(FileNotFoundError):
        (directory / FORECAST_FILE).write_text(_place(spec, cache).read_text())


def read(directory: Path) -> dict[str, Any] | None:
    """What was foretold of the sweep in `directory`; None where nothing was, or it cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads((directory / FORECAST_FILE).read_text())
        return found if isinstance(found, dict) else None
    return None


def compare(forecast: Mapping[str, Any], *, wall_s: float, gpu_hours: float, cost: float) -> dict[str, Any]:
    """A forecast against what was used so far: forecast, actual and their ratio, by name."""
    actual = {"wall_s": wall_s, "gpu_hours": gpu_hours, "cost": cost}
    return {
        name: {
            "forecast": forecast.get(name),
            "actual": value,
            "ratio": value / forecast[name] if forecast.get(name) else None,
        }
        for name, value in actual.items()
    }


def _place(spec: SweepSpec, cache: Path) -> Path:
    text = to_yaml(spec.model_copy(update={"name": "sweep"}))
    return cache / "forecasts" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
