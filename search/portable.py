"""A sweep's file as it is sent elsewhere: data that lies here goes with it, under names of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from search.loading import to_yaml
from search.spec import SweepSpec

DATA = "data"


def portable(spec: SweepSpec, within: Path | None = None) -> tuple[str, dict[str, Path]]:
    """The file's text, and what it names: name beside the file -> file or directory here.

    Args:
        within: only what lies below goes along; all else is left where it is.
    """
    sent = {
        setting: (name, path)
        for setting, (name, path) in named(spec).items()
        if path.exists() and (within is None or path.is_relative_to(within))
    }
    places: dict[str, Any] = {setting: name for setting, (name, _) in sent.items()}
    text = to_yaml(spec.model_copy(update={"data": replace(spec.data, **places)}))
    return text, dict(sent.values())


def named(spec: SweepSpec) -> dict[str, tuple[str, Path]]:
    """The settings of `data` that are absolute paths: what each is called beside the file, and its path."""
    # With `name`, the others are splits of it.
    settings = ("train", "validation", "test") if spec.data.name is None else ("name",)
    paths = {setting: Path(getattr(spec.data, setting) or "") for setting in settings}
    return {
        setting: (f"{DATA}/{setting}{path.suffix}", path)
        for setting, path in paths.items()
        if path.is_absolute()
    }
