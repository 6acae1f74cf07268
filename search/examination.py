"""What `doctor` has to know of a sweep and its storage, and tries on every node."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from search import mirror
from search.spec import SweepSpec
from search.trackers import wandb_login
from training import probes
from training.store import Place

_STATES = 3
"""Weights and two moments."""
_UNFINISHED = 8
"""Trials at once, where the file does not say how many."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What to try, and what a sweep needs."""

    probes: Mapping[str, Callable[[], str]]
    """What is tried on every node, by the name of its check."""
    tracking: tuple[bool, str] | None
    """Whether W&B takes the key, and what it said; None where it is off."""
    disk_bytes: int | None
    """What the sweep keeps, at most."""
    storage_free_bytes: int | None


@contextmanager
def examination(spec: SweepSpec | None, storage: Path) -> Iterator[Examination]:
    """What to try for a sweep, or for any where `spec` is None. Leaves nothing in the storage.

    Raises:
        ValueError: if this process cannot write to the storage.
    """
    mirror.check_writable(storage)
    place = mirror.place_of(storage) or Place(str(storage))
    created = place.is_local and not storage.exists()
    token = f".probe-{uuid.uuid4().hex[:12]}"
    try:
        (place / token).write(os.urandom(1024))
    except OSError as error:
        raise ValueError(f"--storage: {error}") from error
    tried: dict[str, Callable[[], str]] = {"storage": partial(probes.storage, place.uri, token)}
    if spec is not None:
        tried["model"] = partial(probes.model, spec.model)
        tried["data"] = partial(probes.data, spec.model, spec.task, spec.data)
    settings = spec.tracking.wandb if spec is not None else None
    try:
        yield Examination(
            probes=tried,
            tracking=None if spec is not None and settings is None else wandb_login.check(settings),
            disk_bytes=None if spec is None else _disk_bytes(spec),
            storage_free_bytes=shutil.disk_usage(storage).free if place.is_local else None,
        )
    finally:
        (place / token).remove()
        if created:
            shutil.rmtree(storage, ignore_errors=True)


def _disk_bytes(spec: SweepSpec) -> int | None:
    """Of all checkpoints that are there at a time, were everything thawed, and of the best model."""
    from training.memory import numel, read_shape

    try:
        shape = read_shape(spec.model, spec.task)
    except ValueError:  # the check of the model says so
        return None
    weights = 4 * numel(shape.units(-1))
    wanted = spec.resources.max_concurrent
    running = min(spec.search.trials, _UNFINISHED if wanted == "auto" else wanted)
    return weights * (_STATES * (spec.checkpoints.keep + 2 * running) + 1)
