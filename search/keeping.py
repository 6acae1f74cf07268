"""A submitted sweep's data, kept with the sweep.

Ray forgets what was sent with a job when the job has ended; the sweep may have to go on after that.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from search import mirror
from search.portable import DATA, local_data
from search.spec import SweepSpec


def keep(spec: SweepSpec, directory: Path) -> None:
    """Copy the data that lies on this machine into the sweep's `directory`, where it is not there yet.

    Raises:
        OSError: if it cannot be written.
    """
    fresh = False
    for name, path in local_data(spec, gone=False).values():
        target = directory / name
        if target.exists():
            continue
        draft = target.with_name(f".{target.name}")
        draft.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, draft, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, draft)
        draft.rename(target)
        fresh = True
    if fresh:
        mirror.put_directory(directory / DATA)


def found(spec: SweepSpec, directory: Path) -> SweepSpec:
    """The spec with data that is not where it was taken from what was kept in the sweep's `directory`.

    Raises:
        ValueError: if what was kept is damaged.
        OSError: if it cannot be read.
    """
    away = local_data(spec, gone=True)
    if not away:
        return spec
    mirror.get_directory(directory / DATA)
    there = {setting: directory / name for setting, (name, _) in away.items() if (directory / name).exists()}
    places: dict[str, Any] = {setting: str(path.resolve()) for setting, path in there.items()}
    return spec.model_copy(update={"data": replace(spec.data, **places)})
