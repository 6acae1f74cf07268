"""A submitted sweep's data, kept with the sweep.

Ray forgets what was sent with a job when the job has ended; the sweep may have to go on after that.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from search import mirror
from search.portable import DATA, named, portable
from search.spec import SweepSpec


def keep(spec: SweepSpec, beside: Path, directory: Path) -> None:
    """Copy data that lies in the directory of a sweep's file into the sweep's own, where it is not yet.

    Args:
        beside: the directory of the file. What lies elsewhere, as on a share, has a place that lasts.
        directory: the sweep's.

    Raises:
        OSError: if it cannot be written.
    """
    fresh = False
    for name, path in portable(spec, beside)[1].items():
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


def kept(spec: SweepSpec, directory: Path) -> SweepSpec:
    """The spec with the data that was kept in the sweep's `directory`, in place of what that was copied from.

    Raises:
        ValueError: if it is damaged.
        OSError: if it cannot be read.
    """
    mirror.get_directory(directory / DATA)
    copies = {setting: directory / name for setting, (name, _) in named(spec).items()}
    there: dict[str, Any] = {
        setting: str(path.resolve()) for setting, path in copies.items() if path.exists()
    }
    return spec.model_copy(update={"data": replace(spec.data, **there)})
