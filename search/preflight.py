"""What can be known to be wrong before anything starts: model, data, metric, schedule."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from search import mirror
from search.database import complaint
from search.objectives import COSTS
from search.problems import SpecError, hint
from search.space import (
    Categorical,
    Condition,
    Constant,
    IntUniform,
    Normal,
    Parameter,
    Uniform,
    active,
)
from search.spec import SweepSpec, trial_settings
from search.trackers.wandb_login import key_in
from training.config import ModelConfig, TrialConfig
from training.data import Data, prepare
from training.models import load_config, model_directory, num_blocks
from training.schedules import phases
from training.tasks import TASKS

# Settings that decide which model and data a trial has, and whether its schedule fits them.
SHAPING = ("model.", "task.", "unfreezing.", "epochs", "optimizer", "zero.")
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
    url = spec.search.storage
    wrong = None if url is None else complaint(url)
    if wrong is not None:  # said alone, before anything could be written that has the URL in it
        raise SpecError([f"search.storage: {wrong}"])
    metrics = [f"eval/{name}" for name in TASKS[spec.task.type].metrics]
    if spec.search.metric.name not in metrics:
        problems.append(
            f"search.metric.name: task {spec.task.type} does not report {spec.search.metric.name!r}"
            f"{hint(spec.search.metric.name, metrics)}"
        )
    for number, objective in enumerate(spec.search.objectives):
        if objective.name not in (*metrics, *COSTS):
            problems.append(
                f"search.objectives[{number}].name: task {spec.task.type} does not report "
                f"{objective.name!r}{hint(objective.name, [*metrics, *COSTS])}"
            )
    improving = spec.training.early_stopping.metric
    if improving not in metrics:
        problems.append(
            f"training.early_stopping.metric: task {spec.task.type} does not report {improving!r}"
            f"{hint(improving, metrics)}"
        )
    halves = any(corner.training.precision == "fp16" for corner in corners(spec, ("precision",)))
    if halves and not spec.resources.on_gpu:
        searched = any(parameter.path == "precision" for parameter in spec.space.parameters)
        problems.append(
            f"{'parameters' if searched else 'training'}.precision: fp16 needs GPUs; "
            f"set resources.gpus_per_worker, or take fp32 or bf16"
        )
    wandb = spec.tracking.wandb
    if wandb is not None and wandb.api_key_file is not None and wandb.mode in ("auto", "online"):
        try:
            key_in(wandb.api_key_file)
        except ValueError as error:
            problems.append(str(error))
    trials = list(corners(spec))
    blocks: dict[ModelConfig, int] = {}
    for model in dict.fromkeys(corner.model for corner in trials):
        try:
            blocks[model] = _blocks(model)
        except ValueError as error:
            problems.append(str(error))
    problems += _misfits(spec, trials, blocks)
    found: list[Data] = []
    for model, task in dict.fromkeys((corner.model, corner.task) for corner in trials):
        try:
            found.append(prepare(model, task, spec.data))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))  # several of them may need the same model
    data = found[0]
    return Facts(
        num_blocks=next(iter(blocks.values())),
        num_train=len(data.train),
        num_validation=len(data.validation),
        label_names=data.label_names,
        data_fingerprint=data.fingerprint,
    )


def check_writable(directory: Path, setting: str = "--storage") -> None:
    """Check that files can be made in `directory`, or that it can be made itself. Leaves nothing behind.

    Raises:
        ValueError: if not, saying why.
    """
    mirror.check_writable(directory, setting)
    nearest = next(place for place in (directory, *directory.parents) if os.path.lexists(place))
    try:
        with tempfile.NamedTemporaryFile(dir=nearest):
            pass
    except OSError as error:
        why = "a file is in the way" if nearest.is_file() else error.strerror or str(error)
        raise ValueError(
            f"{setting}: {directory} cannot be written ({why}); give a directory that you may write to"
        ) from error


def _blocks(model: ModelConfig) -> int:
    """The model's number of blocks, once it is known to be there and of a supported architecture."""
    model_directory(model)
    config = load_config(model)
    from training.blocks import architecture_of

    architecture_of(config.model_type)
    return num_blocks(config)


def _misfits(spec: SweepSpec, trials: Sequence[TrialConfig], blocks: Mapping[ModelConfig, int]) -> list[str]:
    """What is wrong with schedules and optimizers at the corners of the space."""
    from training.optimizers import check as check_optimizer

    searched = {parameter.path for parameter in spec.space.parameters}
    found: dict[str, None] = {}
    for config in trials:
        if config.model not in blocks:
            continue
        try:
            check_optimizer(config.training)
            phases(config.training.unfreezing, blocks[config.model], config.training.epochs, config.seed)
        except ValueError as error:
            setting = re.split(r"[:\[]", str(error), maxsplit=1)[0]
            found[f"{'parameters' if setting in searched else 'training'}.{error}"] = None
    return list(found)


def corners(spec: SweepSpec, shaping: tuple[str, ...] = SHAPING) -> Iterator[TrialConfig]:
    """Trials at the extremes of every parameter that shapes the trial, and of those they depend on.

    Args:
        shaping: how the paths of those begin.
    """
    conditions = [condition for parameter in spec.space.parameters for condition in parameter.when]
    wanted = {p.path for p in spec.space.parameters if p.path.startswith(shaping)}
    for parameter in reversed(spec.space.parameters):  # each comes after those it depends on
        if parameter.path in wanted:
            wanted |= {condition.path for condition in parameter.when}
    parameters = [p for p in spec.space.parameters if p.path in wanted]
    combinations = product(*(_telling(parameter, conditions) for parameter in parameters))
    for combination in islice(combinations, _MAX_CORNERS):
        values = dict(zip((p.path for p in parameters), combination, strict=True))
        used = set(active(spec.space, values))
        yield trial_settings(spec, {path: value for path, value in values.items() if path in used}, seed=0)


def _telling(parameter: Parameter, conditions: Iterable[Condition]) -> list[Any]:
    """Its extremes, and the values that other parameters depend on."""
    values = list(extremes(parameter))
    for condition in conditions:
        if condition.path == parameter.path:
            values += [value for value in condition.values if value not in values]
    return values


def extremes(parameter: Parameter) -> tuple[Any, ...]:
    """The least and greatest values of a parameter, or all of its choices."""
    match parameter.distribution:
        case Categorical(choices=choices):
            return tuple(choices)
        case IntUniform(low=low, high=high) | Uniform(low=low, high=high):
            return (low, high)
        case Constant(value=value):
            return (value,)
        case Normal(mu=mu):
            return (mu,)
