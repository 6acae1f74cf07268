"""What can be known to be wrong before anything starts: model, data, metric, schedule."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from search.problems import SpecError, hint
from search.space import Categorical, IntUniform, Parameter, Uniform, active
from search.spec import SweepSpec, trial_settings
from training.config import TrialConfig
from training.data import prepare
from training.models import load_config, model_directory, num_blocks
from training.schedules import phases
from training.tasks import TASKS

# Settings that decide whether a schedule fits the model and the length of the training.
_SHAPING = ("unfreezing.", "epochs")
_MAX_CORNERS = 512


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the checks found out."""

    num_blocks: int
    num_train: int
    num_validation: int
    label_names: tuple[str, ...]
    data_fingerprint: str


def check(spec: SweepSpec) -> Facts:
    """Check a sweep against its model and its data, which are tokenised and cached on the way.

    Raises:
        SpecError: with everything that is wrong, one line each.
    """
    problems: list[str] = []
    metrics = [f"eval/{name}" for name in TASKS[spec.task.type].metrics]
    if spec.search.metric.name not in metrics:
        problems.append(
            f"search.metric.name: task {spec.task.type} does not report {spec.search.metric.name!r}"
            f"{hint(spec.search.metric.name, metrics)}"
        )
    blocks = 0
    try:
        model_directory(spec.model)
        config = load_config(spec.model)
        blocks = num_blocks(config)
        from training.blocks import architecture_of

        architecture_of(config.model_type)
    except ValueError as error:
        problems.append(str(error))
    else:
        problems += _misfits(spec, blocks)
    try:
        data = prepare(spec.model, spec.task, spec.data)
    except ValueError as error:
        if str(error) not in problems:  # both need the model
            problems.append(str(error))
    if problems:
        raise SpecError(problems)
    return Facts(
        num_blocks=blocks,
        num_train=len(data.train),
        num_validation=len(data.validation),
        label_names=data.label_names,
        data_fingerprint=data.fingerprint,
    )


def check_writable(directory: Path) -> None:
    """Check that files can be made in `directory`, which is made if it is not there.

    Raises:
        ValueError: if not, saying why.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(
            f"--storage: {directory} cannot be written ({why}); give a directory that you may write to"
        ) from error


def _misfits(spec: SweepSpec, blocks: int) -> list[str]:
    """What is wrong with the schedules at the corners of the space."""
    found: dict[str, None] = {}
    for config in _corners(spec):
        try:
            phases(config.training.unfreezing, blocks, config.training.epochs)
        except ValueError as error:
            found[str(error)] = None
    return list(found)


def _corners(spec: SweepSpec) -> Iterator[TrialConfig]:
    """Trials at the extremes of every parameter that shapes the schedule."""
    parameters = [p for p in spec.space.parameters if p.path.startswith(_SHAPING)]
    combinations = product(*(_extremes(parameter) for parameter in parameters))
    for combination in islice(combinations, _MAX_CORNERS):
        values = dict(zip((p.path for p in parameters), combination, strict=True))
        used = set(active(spec.space, values))
        yield trial_settings(spec, {path: value for path, value in values.items() if path in used}, seed=0)


def _extremes(parameter: Parameter) -> tuple[Any, ...]:
    distribution = parameter.distribution
    if isinstance(distribution, Categorical):
        return tuple(distribution.choices)
    if isinstance(distribution, IntUniform | Uniform):
        return (distribution.low, distribution.high)
    return (getattr(distribution, "value", None) or getattr(distribution, "mu", None),)


def local_storage(storage: str) -> Path:
    """The directory that `--storage` names.

    Raises:
        ValueError: if it is not on this machine's file systems.
    """
    if storage.startswith("file://"):
        storage = storage.removeprefix("file://")
    if "://" in storage:
        raise ValueError(
            f"--storage: {storage} is not a directory; give a local or mounted path, or file://PATH"
        )
    return Path(os.path.abspath(os.path.expanduser(storage)))
