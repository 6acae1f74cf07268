"""One trial as the loop sees it: what stays the same from the first step to the last, and how it can end."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import batches, checkpoint, memory
from training.checkpoint import State, Told
from training.config import TrialConfig
from training.plan import Plan
from training.reporter import Reporter
from training.rng import derive
from training.team import Team
from training.workspace import Setting

# Losses in a row that are not finite before a trial counts as diverged.
PATIENCE_STEPS = 3


class Diverged(RuntimeError):
    """The loss is no longer finite."""


class Infeasible(RuntimeError):
    """The trial does not fit in memory, however small its micro-batches."""


class OutOfMemory(RuntimeError):
    """A step did not fit in memory, and other ranks may wait for this one.

    Args:
        micro_batch: the examples in a forward pass that were too many.
    """

    def __init__(self, micro_batch: int, message: str) -> None:
        super().__init__(message)
        self.micro_batch = micro_batch


class TooLarge(Exception):
    """A step did not fit, and nothing of it has happened: it is to be repeated from `state`."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What stays the same from the first step to the last."""

    config: TrialConfig
    setting: Setting
    plan: Plan
    team: Team
    reporter: Reporter
    directory: Path
    history: list[Told]
    """The evaluations so far."""
    class_weights: Tensor | None
    """fp32 [C], on the device."""
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=PATIENCE_STEPS))
    """The latest, over all phases."""
    _epochs: dict[int, list[np.ndarray]] = field(default_factory=dict)

    @property
    def identity(self) -> checkpoint.Identity:
        """What the trial's checkpoints belong to."""
        setting = self.setting
        return checkpoint.identity(self.config, model=setting.fingerprint, data=setting.data.fingerprint)

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

    def micro_batch(self, boundary: int) -> int:
        """Examples in one forward pass of one worker, as far as is known of what fits."""
        device: Any = self.team.device.type
        size = memory.micro_batch(self.config.training, workers=self.team.size, device=device)
        return min(size, self.setting.micro_limits.get(boundary, size))


def class_weights(config: TrialConfig, setting: Setting, team: Team) -> Tensor | None:
    """Weight of each class, fp32 [C]; None where all count alike.

    Raises:
        ValueError: where a list does not have one for each class.
    """
    wanted, names = config.training.class_weights, setting.data.label_names
    if wanted == "none":
        return None
    if wanted == "balanced":  # as scikit-learn has it: n / (C * count)
        counts = np.bincount(setting.data.train.labels, minlength=len(names))
        weights = len(setting.data.train) / (len(names) * np.maximum(counts, 1))
        return torch.from_numpy(weights.astype(np.float32)).to(team.device)
    if len(wanted) != len(names):
        raise ValueError(
            f"class_weights: {len(wanted)} weights for {len(names)} classes; "
            f"give one for each of {', '.join(names)}, in this order"
        )
    return torch.tensor([float(w) for w in wanted], device=team.device)


def is_last(trial: Trial) -> bool:
    """Whether the latest evaluation is the last one: at the end, or where early stopping ends the trial."""
    if trial.history[-1].step >= trial.plan.total_steps:
        return True
    rule = trial.config.training.early_stopping
    if rule.patience is None:
        return False
    sign = 1.0 if rule.goal == "maximize" else -1.0
    values = [sign * told.metrics[rule.metric] for told in trial.history]
    best = -math.inf
    since = 0
    for value in values:
        since = 0 if value > best + rule.min_delta else since + 1
        best = max(best, value) if since == 0 else best
    return since >= rule.patience
