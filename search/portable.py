"""A sweep's file as it is sent elsewhere: data that lies here goes with it, under names of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from search.loading import to_yaml
from search.spec import SweepSpec


def portable(spec: SweepSpec) -> tuple[str, dict[str, Path]]:
    """The file's text, and what it names: name beside the file -> file or directory here."""
    files: dict[str, Path] = {}
    places: dict[str, Any] = {}
    # With `name`, the others are splits of it.
    settings = ("train", "validation", "test") if spec.data.name is None else ("name",)
    for setting in settings:
        path = Path(getattr(spec.data, setting) or "")
        if path.is_absolute() and path.exists():
            places[setting] = f"data/{setting}{path.suffix}"
            files[places[setting]] = path
    return to_yaml(spec.model_copy(update={"data": replace(spec.data, **places)})), files
