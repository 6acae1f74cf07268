"""One trial as the loop sees it: what stays the same from the first step to the last, and how it can end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import batches, checkpoint
from training.checkpoint import Told
from training.config import TrialConfig
from training.draft import Draft
from training.plan import Plan
from training.reporter import Reporter
from training.rng import derive
from training.sizes import Sizes
from training.store import Place
from training.team import Team
from training.workspace import Setting

# Losses in a row that are not finite before a trial counts as diverged.
PATIENCE_STEPS = 3


class Diverged(RuntimeError):
    """The loss is no longer finite."""


class Infeasible(RuntimeError):
    """The trial does not fit in memory, however small its micro-batches."""


class OutOfMemory(RuntimeError):
    """A worker ran out of memory, and others may wait for it: the trial is to be taken up by new ones.

    Args:
        at: what ran out, as `training.sizes.key` has it.
        smaller: the sizes to try next; None where there are none.
    """

    def __init__(self, at: str, smaller: Sizes | None, message: str) -> None:
        super().__init__(message)
        self.at = at
        self.smaller = smaller


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: torch has a type for it on a GPU, and only words on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error)


class Losses:
    """The training losses of a trial, over all its phases and engines.

    Args:
        last: the latest before this process took the trial up.
        step: the step that gave the last of them, counted from 1.
    """

    def __init__(self, last: Iterable[float] = (), step: int = 0) -> None:
        self._tail: deque[tuple[int, float]] = deque(maxlen=PATIENCE_STEPS)
        values = list(last)
        self._tail.extend(zip(range(step - len(values) + 1, step + 1), values, strict=True))
        self._pending: list[tuple[int, Tensor]] = []
        self.diverged: tuple[int, float] | None = None
        """Step and loss of the last of `PATIENCE_STEPS` in a row that are not finite."""

    def add(self, step: int, loss: Tensor) -> None:
        """Keep this rank's part of a step's loss, without waiting for it."""
        self._pending.append((step, loss))

    def settle(self, team: Team) -> list[float]:
        """The losses since the last call, over all ranks; waits for them. At least one is there."""
        values: list[float] = team.sum(torch.stack([loss for _, loss in self._pending])).tolist()
        for (step, _), value in zip(self._pending, values, strict=True):
            self._tail.append((step, value))
            if len(self._tail) == PATIENCE_STEPS and not any(math.isfinite(loss) for _, loss in self._tail):
                self.diverged = self.diverged or (step, value)
        self._pending.clear()
        return values

    def rewind(self, step: int) -> None:
        """Forget the steps after `step`: they are repeated."""
        self._pending = [(at, loss) for at, loss in self._pending if at <= step]
        self._tail = deque([(at, loss) for at, loss in self._tail if at <= step], maxlen=PATIENCE_STEPS)

    @property
    def tail(self) -> tuple[float, ...]:
        """The latest losses, as many as a later process has to know."""
        return tuple(loss for _, loss in self._tail)[1 - PATIENCE_STEPS :]


@dataclass(frozen=True, kw_only=True)
class Unsaved:
    """A checkpoint that is still being written: the state after the latest evaluation, or on leaving."""

    draft: Draft
    phase: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What its steps share: what never changes, and what is noted on the way."""

    config: TrialConfig
    identity: checkpoint.Identity
    """What the trial's checkpoints belong to."""
    setting: Setting
    plan: Plan
    team: Team
    reporter: Reporter
    directory: Path
    remote: Place | None
    """See `loop.train`."""
    history: list[Told]
    """The evaluations so far."""
    class_weights: np.ndarray | None
    """float32 [C]."""
    losses: Losses
    unsaved: list[Unsaved] = field(default_factory=list)
    """At most one: that of the latest evaluation, of which nobody has been told yet."""
    _epochs: dict[int, list[np.ndarray]] = field(default_factory=dict)

    @cached_property
    def class_weights_there(self) -> Tensor | None:
        """`class_weights` on the device."""
        weights = self.class_weights
        return None if weights is None else torch.from_numpy(weights).to(self.team.device)

    def batch(self, step: int) -> np.ndarray:
        """The global batch of a step, as indices: a pure function of seed and step."""
        epoch, index = divmod(step, self.plan.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = batches.epoch_batches(
                self.setting.data.train.lengths,
                self.config.training.batch_size,
                derive(self.config.seed, "batches"),
                epoch,
            )
        return self._epochs[epoch][index]

    def owes_evaluation(self, step: int) -> bool:
        """Whether it is to be evaluated after `step` steps, and has not been."""
        return step in self.plan.evaluations and not (self.history and self.history[-1].step >= step)


def class_weights(config: TrialConfig, setting: Setting) -> np.ndarray | None:
    """Weight of each class, float32 [C]; None where all count alike.

    Raises:
        ValueError: where a list does not have one for each class.
    """
    wanted, names = config.training.class_weights, setting.data.label_names
    if wanted == "none":
        return None
    if wanted == "balanced":  # as scikit-learn has it: n / (C * count)
        counts = np.bincount(setting.data.train.labels, minlength=len(names))
        weights = len(setting.data.train) / (len(names) * np.maximum(counts, 1))
        return weights.astype(np.float32)
    if len(wanted) != len(names):
        raise ValueError(
            f"class_weights: {len(wanted)} weights for {len(names)} classes; "
            f"give one for each of {', '.join(names)}, in this order"
        )
    return np.asarray(wanted, np.float32)


def is_last(trial: Trial) -> bool:
    """Whether the latest evaluation is the last one: at the end, or where early stopping ends the trial."""
    if trial.history[-1].step >= trial.plan.total_steps:
        return True
    rule = trial.config.training.early_stopping
    if rule.patience is None:
        return False
    sign = 1.0 if rule.goal == "maximize" else -1.0
    values = [sign * told.metrics[rule.metric] for told in trial.history]
    best, since = -math.inf, 0
    for value in values:
        since += 1
        if value > best + rule.min_delta:
            best, since = value, 0
    return since >= rule.patience
