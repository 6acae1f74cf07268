"""The fixed lists of trials that `sweep_speed` and `limit` run, and their arithmetic. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from search.ledger import derived_seed
from tests.benchmarks.jobs import Job, Stage, Task
from tests.conftest import MODEL, SENTENCES
from training.config import ModelConfig
from training.cost import compute
from training.models import model_directory
from training.plan import plan

SEED = 0
_KINDS: dict[str, tuple[str, int]] = {
    "head": ("head", 1),
    "top-1": ("top", 1),
    "top-2": ("top", 2),
    "gradual": ("gradual", 3),
    "full": ("full", 1),
}
"""Schedule and depth."""
WORKLOADS = {
    "w1": ("head", "top-1", "top-2", "gradual", "full"),
    "w2": ("head", "top-1", "top-2"),
    "w3": ("full",),
}
"""Mixed, light and heavy: the kinds of trials, which take turns."""
_RATES = {"head": 2e-3, "top-1": 4e-4, "top-2": 3e-4, "gradual": 2e-4, "full": 1e-4}


def job(
    workload: str,
    *,
    trials: int,
    examples: int,
    validated: int,
    precision: str,
    processes: int,
    gpus: float = 0.0,
    model: str = MODEL,
) -> Job:
    """The job of a workload."""
    directory = Path(model_directory(ModelConfig(name=model)))
    num_blocks = int(json.loads((directory / "config.json").read_text())["num_hidden_layers"])
    kinds = WORKLOADS[workload]
    return Job(
        model=model,
        directory=str(directory),
        num_blocks=num_blocks,
        train=str(SENTENCES / "train.jsonl"),
        validation=str(SENTENCES / "validation.jsonl"),
        examples=examples,
        validated=validated,
        max_length=64,
        precision=precision,
        processes=processes,
        gpus=gpus,
        tasks=tuple(
            _task(n, kinds[n % len(kinds)], n // len(kinds), num_blocks, examples) for n in range(trials)
        ),
    )


def _task(number: int, kind: str, turn: int, num_blocks: int, examples: int) -> Task:
    schedule, depth = _KINDS[kind]
    bare = Task(
        number=number,
        kind=kind,
        schedule=schedule,
        depth=min(depth, num_blocks),
        # Each turn of the kinds another rate, from half to twice the customary one.
        learning_rate=_RATES[kind] * 2.0 ** ((turn % 5 - 2) / 2),
        batch_size=(16, 32)[turn % 2],
        seed=derived_seed(SEED, number, "trial"),
        stages=(),
    )
    course = plan(bare.training(), num_blocks=num_blocks, num_examples=examples, seed=bare.seed)
    stages = []
    for stretch in course.stretches:
        phase = stretch.phase
        thawed = ["classifier.", "bert.pooler.", *(f"bert.encoder.layer.{b}." for b in phase.blocks)]
        thawed += ["bert.embeddings."] if phase.embeddings else []
        stages.append(Stage(start=stretch.start, thawed=tuple(thawed)))
    return Task(**{**{f: getattr(bare, f) for f in bare.__dataclass_fields__}, "stages": tuple(stages)})


def sweep_file(given: Job, name: str) -> dict[str, Any]:
    """The job as a sweep, each trial a point that is tried first."""
    schedules = sorted({task.schedule for task in given.tasks})
    deep = [schedule for schedule in schedules if schedule in ("top", "gradual")]
    parameters: dict[str, Any] = {
        "learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-1},
        "batch_size": {"values": [16, 32]},
        "unfreezing.schedule": {"values": schedules},
    }
    if deep:
        depths = sorted({task.depth for task in given.tasks if task.schedule in deep})
        parameters["unfreezing.depth"] = {"values": depths, "when": {"unfreezing.schedule": deep}}
    return {
        "name": name,
        "model": {"name": given.model},
        "task": {"type": "sequence-classification", "max_length": given.max_length},
        "data": {
            "train": given.train,
            "validation": given.validation,
            "limit": {"train": given.examples, "validation": given.validated},
        },
        "training": {"epochs": 1, "evaluations_per_epoch": 1, "precision": given.precision},
        "parameters": parameters,
        "search": {
            "metric": {"name": "eval/accuracy", "goal": "maximize"},
            "sampler": "random",
            "scheduler": "none",
            "trials": len(given.tasks),
            "points": [_point(task) for task in given.tasks],
            "default_points": False,
            "duplicates": "allow",
            "seed": SEED,
        },
        "resources": {
            "workers": 1,
            "max_concurrent": given.processes,
            "gpus_per_worker": given.gpus,
        },
        "tracking": {"wandb": None},
    }


def _point(task: Task) -> dict[str, Any]:
    point = {
        "learning_rate": task.learning_rate,
        "batch_size": task.batch_size,
        "unfreezing.schedule": task.schedule,
    }
    return point | ({"unfreezing.depth": task.depth} if task.schedule in ("top", "gradual") else {})


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What a job takes, in epochs of full training of the model on real tokens."""

    thaw: float
    """Blocks above the boundary in training and evaluation, and the frozen ones once for all."""
    rival: float
    """All blocks forward, gradients down to the lowest thawed one."""


def arithmetic(given: Job) -> Arithmetic:
    """The least that either way of training takes; see `training.cost`."""
    blocks = given.num_blocks
    forward = 1 / (3 * blocks + 0.25)  # one block over all training examples
    share = given.validated / given.examples
    thaw = rival = 0.0
    lowest = {"train": 0, "validation": 0}  # the boundaries from which the others follow, the highest
    for task in given.tasks:
        course = given.plan(task)
        phases = [stretch.phase for stretch in course.stretches]
        taken = compute(phases, blocks, 1.0)
        boundaries = [max(phase.boundary(blocks), 0) for phase in phases]
        ends = [*(stretch.start for stretch in course.stretches), course.total_steps]
        shares = [(b - a) / course.total_steps for a, b in pairwise(ends)]
        frozen = sum(part * boundary for part, boundary in zip(shares, boundaries, strict=True))
        thaw += taken + share * (blocks - boundaries[-1]) * forward
        rival += taken + (frozen + share * blocks) * forward
        lowest["train"] = max(lowest["train"], *boundaries)
        lowest["validation"] = max(lowest["validation"], boundaries[-1])
    once = (lowest["train"] + share * lowest["validation"]) * forward
    return Arithmetic(thaw=thaw + once, rival=rival)


def mean(values: Iterable[float]) -> float:
    """Of none 0."""
    listed: Sequence[float] = list(values)
    return sum(listed) / len(listed) if listed else 0.0
