"""Evaluation: the task's metrics on a whole split, the same for any number of workers."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from training.ahead import ahead
from training.batches import evaluation_batches
from training.engine import Engine
from training.prefix import Feed
from training.tasks import Task
from training.team import Team


def evaluate(
    engine: Engine,
    feed: Feed,
    name: str,
    *,
    task: Task,
    team: Team,
    batch_tokens: int,
) -> dict[str, float]:
    """`eval/NAME` for each metric of the task on the split called `name`, which is open, on every rank.

    Batches are the same for any number of workers, which take them in turn; all run the same
    number of forward passes, as ZeRO-3 needs.
    """
    split = feed.frozen.split(name)
    batches = evaluation_batches(split.lengths, batch_tokens)
    order: list[np.ndarray] = []
    logits: list[Tensor] = []
    engine.module.eval()
    rounds = range(0, len(batches), team.size)
    turns = (batches[min(first + team.rank, len(batches) - 1)] for first in rounds)
    with closing(ahead(lambda indices: feed.rows(name, indices), turns)) as coming:
        for first, rows in zip(rounds, coming, strict=True):
            inputs, _ = feed.batch(rows)
            found = engine.evaluated(**inputs)
            if first + team.rank < len(batches):
                order.append(rows.indices)
                logits.append(found)
    # Only now is the device waited for.
    part = (np.concatenate(order), torch.cat(logits).cpu().numpy()) if order else None
    gathered = [part for part in team.gather(part) if part is not None]
    places = np.argsort(np.concatenate([indices for indices, _ in gathered]))
    whole = np.concatenate([values for _, values in gathered])[places]
    metrics = task.compute(whole, np.asarray(split.labels))
    return {f"eval/{name}": float(value) for name, value in metrics.items()}
