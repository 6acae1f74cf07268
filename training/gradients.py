"""The gradients of a global batch, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training import batches
from training.ahead import ahead
from training.batches import Micro
from training.opening import Opened
from training.prefix import Rows
from training.rng import derive
from training.transfer import there
from training.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Portion:
    """What this rank runs through the model at once, of the global batch of a step."""

    step: int
    index: int
    micro: Micro
    total: float
    """Of the weights of the global batch."""
    last: bool
    """Of its step."""


Prepared = Generator[tuple[Portion, Rows], None, None]


def _portions(trial: Trial, steps: range, micro_batch: int) -> Iterator[Portion]:
    """What this rank runs through the model in `steps`, in order."""
    train, team = trial.setting.data.train, trial.team
    for step in steps:
        batch = trial.batch(step)
        total = float(len(batch))
        if trial.class_weights is not None:
            total = float(trial.class_weights[train.labels[batch]].sum())
        parts = batches.split(batch, train.lengths, team.size, micro_batch)
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            yield Portion(step=step, index=index, micro=part[team.rank], total=total, last=last)


def prepared(trial: Trial, steps: range, phase: Opened, micro_batch: int) -> Prepared:
    """The portions with their rows, which are fetched while the portion before them computes."""

    def fetched(portion: Portion) -> tuple[Portion, Rows]:
        return portion, phase.feed.rows("train", portion.micro.indices)

    return ahead(fetched, _portions(trial, steps, micro_batch))


def gradients(trial: Trial, step: int, phase: Opened, coming: Prepared) -> Tensor:
    """The gradients of the global batch of `step`, the next of `coming`.

    Returns this rank's part of its mean loss.
    """
    team = trial.team
    mean = torch.zeros((), device=team.device)
    for portion, rows in coming:
        assert portion.step == step, (portion, step)
        real = there(torch.from_numpy(portion.micro.weights), team.device)
        team.seed(derive(trial.config.seed, "dropout", portion.step, portion.index, team.rank))
        loss = (phase.losses(rows) * real).sum() / portion.total
        # The engine averages gradients over the ranks, the batch's mean loss is a sum over them.
        phase.engine.backward(loss * team.size, last=portion.last)
        mean += loss.detach()
        if portion.last:
            return mean
    raise RuntimeError(f"there is no batch for step {step}")
