"""Evaluation: the task's metrics on a whole split, the same for any number of workers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.batches import collate, evaluation_batches, width
from training.data import Data, Split
from training.engine import Engine
from training.prefix import Prefix
from training.tasks import Task
from training.team import Team

_BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}


def tensors(
    split: Split, indices: np.ndarray, *, data: Data, cap: int, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """Model inputs (int64 [b, width] each) and labels (int64 [b]) of some examples, on `device`."""
    columns = width(int(split.lengths[indices].max()), cap=cap)
    arrays = collate(split, indices, columns, data.pad_id)
    batch = {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}
    labels = batch.pop("labels")
    return batch, labels


def evaluate(
    engine: Engine, prefix: Prefix, split: Split, *, data: Data, task: Task, cap: int, team: Team
) -> dict[str, float]:
    """`eval/NAME` for each metric of the task, on every rank.

    Batches are the same for any number of workers, which take them in turn; all run the same
    number of forward passes, as ZeRO-3 needs.
    """
    batches = evaluation_batches(split.lengths, _BATCH_TOKENS.get(team.device.type, 2_048))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    engine.module.eval()
    with torch.no_grad():
        for first in range(0, len(batches), team.size):
            mine = first + team.rank
            indices = batches[min(mine, len(batches) - 1)]
            batch, _ = tensors(split, indices, data=data, cap=cap, device=team.device)
            logits = engine(**prefix(batch))
            if mine < len(batches):
                parts.append((indices, logits.float().cpu().numpy()))
    gathered = [part for rank in team.gather(parts) for part in rank]
    order = np.concatenate([indices for indices, _ in gathered])
    logits_all = np.concatenate([logits for _, logits in gathered])[np.argsort(order)]
    metrics = task.compute(logits_all, np.asarray(split.labels))
    return {f"eval/{name}": float(value) for name, value in metrics.items()}
