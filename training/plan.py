"""A trial's whole course in optimizer steps, worked out before the first one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from training.batches import steps_per_epoch
from training.config import TrainingConfig
from training.schedules import Phase, phases


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A phase and the steps it covers: from `start` up to, not including, `stop`."""

    phase: Phase
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The course of one trial."""

    num_examples: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    stretches: tuple[Stretch, ...]
    evaluations: dict[int, float]
    """Steps taken -> epochs seen, for every point at which the trial is evaluated. The epochs
    are the nominal ones, multiples of 1 / evaluations_per_epoch, the same for every batch size."""

    def examples(self, step: int) -> int:
        """Training examples seen after `step` steps."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.num_examples + min(rest * self.batch_size, self.num_examples)


def plan(training: TrainingConfig, *, num_blocks: int, num_examples: int, seed: int = 0) -> Plan:
    """The course of a trial on `num_examples` training examples.

    A phase too short to hold a step is left out.

    Args:
        seed: the trial's, for schedules that draw at random.

    Raises:
        ValueError: where the schedule does not fit the model.
    """
    per_epoch = steps_per_epoch(num_examples, training.batch_size)
    total = math.ceil(training.epochs * per_epoch - 1e-9)
    starts = [
        (min(round(phase.start_epoch * per_epoch), total), phase)
        for phase in phases(training.unfreezing, num_blocks, training.epochs, seed)
    ]
    bounds = [*(start for start, _ in starts), total]
    stretches = tuple(
        Stretch(phase=phase, start=start, stop=stop)
        for (_, phase), (start, stop) in zip(starts, pairwise(bounds), strict=True)
        if stop > start
    )
    # Those before the end: the last evaluation is there, wherever the last step falls.
    count = math.ceil(training.epochs * training.evaluations_per_epoch - 1e-9) - 1
    points = {
        min(max(1, round(index * per_epoch / training.evaluations_per_epoch)), total): (
            index / training.evaluations_per_epoch
        )
        for index in range(1, count + 1)
    }
    return Plan(
        num_examples=num_examples,
        batch_size=training.batch_size,
        steps_per_epoch=per_epoch,
        total_steps=total,
        stretches=stretches,
        evaluations=points | {total: float(training.epochs)},
    )
