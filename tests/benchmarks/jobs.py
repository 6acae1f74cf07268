"""A list of trials as every side of `sweep_speed` is given it.

Imports next to nothing: what the rivals' processes load is theirs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config import TrainingConfig
    from training.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What trains from a step on."""

    start: int
    thawed: tuple[str, ...]
    """How the names of the thawed parameters begin, in Transformers' BERT."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One trial, as every side is given it."""

    number: int
    kind: str
    schedule: str
    depth: int
    learning_rate: float
    batch_size: int
    seed: int
    stages: tuple[Stage, ...]

    def training(self, precision: str = "fp32") -> TrainingConfig:
        """Its settings in Thaw's terms; what is not named is Thaw's default."""
        from training.config import TrainingConfig, UnfreezingConfig

        return TrainingConfig(
            epochs=1.0,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            precision=precision,  # type: ignore[arg-type]
            unfreezing=UnfreezingConfig(schedule=self.schedule, depth=self.depth),  # type: ignore[arg-type]
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A list of trials, and what they train and are measured on."""

    model: str
    """As `model.name` of a sweep."""
    directory: str
    """Where its files are."""
    num_blocks: int
    train: str
    validation: str
    examples: int
    validated: int
    max_length: int
    precision: str
    processes: int
    """That train at a time, one thread each."""
    gpus: float
    """What each of them has of a GPU; 0 for training on the CPU."""
    tasks: tuple[Task, ...]

    @property
    def defaults(self) -> TrainingConfig:
        """What trials have in common."""
        from training.config import TrainingConfig

        return TrainingConfig()

    def plan(self, task: Task) -> Plan:
        """A trial's course in steps."""
        from training.plan import plan

        return plan(task.training(), num_blocks=self.num_blocks, num_examples=self.examples, seed=task.seed)


def dump(given: Job) -> str:
    """As JSON, for another process."""
    return json.dumps(asdict(given))


def parse(text: str) -> Job:
    """What `dump` wrote."""
    raw = json.loads(text)
    tasks = tuple(
        Task(
            **{
                **task,
                "stages": tuple(Stage(start=s["start"], thawed=tuple(s["thawed"])) for s in task["stages"]),
            }
        )
        for task in raw["tasks"]
    )
    return Job(**{**raw, "tasks": tasks})
