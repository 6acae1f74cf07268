"""Evaluation: the task's metrics on a whole split, the same for any number of workers."""

from __future__ import annotations

import numpy as np
import torch

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
    """`eval/NAME` for each metric of the task on the split called `name`, on every rank.

    Batches are the same for any number of workers, which take them in turn; all run the same
    number of forward passes, as ZeRO-3 needs.
    """
    split = feed.frozen.split(name)
    batches = evaluation_batches(split.lengths, batch_tokens)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    engine.module.eval()
    with torch.no_grad():
        for first in range(0, len(batches), team.size):
            mine = first + team.rank
            indices = batches[min(mine, len(batches) - 1)]
            inputs, _ = feed.batch(name, indices)
            logits = engine(**inputs)
            if mine < len(batches):
                parts.append((indices, logits.float().cpu().numpy()))
    gathered = [part for rank in team.gather(parts) for part in rank]
    order = np.concatenate([indices for indices, _ in gathered])
    logits_all = np.concatenate([logits for _, logits in gathered])[np.argsort(order)]
    metrics = task.compute(logits_all, np.asarray(split.labels))
    return {f"eval/{name}": float(value) for name, value in metrics.items()}
