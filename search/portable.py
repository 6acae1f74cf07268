"""A sweep's file as it is sent elsewhere: data that lies here goes with it, under names of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from search.loading import to_yaml
from search.spec import SweepSpec

DATA = "data"


def portable(spec: SweepSpec) -> tuple[str, dict[str, Path]]:
    """The file's text, and what it names: name beside the file -> file or directory here."""
    sent = local_data(spec, gone=False)
    places: dict[str, Any] = {setting: name for setting, (name, _) in sent.items()}
    text = to_yaml(spec.model_copy(update={"data": replace(spec.data, **places)}))
    return text, dict(sent.values())


def local_data(spec: SweepSpec, *, gone: bool) -> dict[str, tuple[str, Path]]:
    """The settings of `data` that name a file or directory of a machine: its name when sent, and its path.

    Args:
        gone: those where nothing is, instead of those where something is.
    """
    # With `name`, the others are splits of it.
    settings = ("train", "validation", "test") if spec.data.name is None else ("name",)
    paths = {setting: Path(getattr(spec.data, setting) or "") for setting in settings}
    return {
        setting: (f"{DATA}/{setting}{path.suffix}", path)
        for setting, path in paths.items()
        if path.is_absolute() and path.exists() is not gone
    }
