"""What a trained model costs its user: the time for an example, and the parameters that are its own."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from training import memory
from training.batches import collate, width
from training.opening import Opened
from training.prefix.compute import on_device
from training.trial import Trial

_EXAMPLES, _WARM_UP = 12, 2


def costs(trial: Trial, phase: Opened) -> dict[str, float]:
    """`cost/parameters`: how many the trial's phases thaw; where it is wanted, `cost/latency` as well.

    Every rank calls it alike.
    """
    thawed = memory.shape_of(trial.setting.blocks).thawed(*(s.phase for s in trial.plan.stretches))
    found = {"cost/parameters": float(memory.numel(thawed))}
    if trial.config.training.measure_latency:
        found["cost/latency"] = latency_ms(trial, phase)
    return found


def latency_ms(trial: Trial, phase: Opened) -> float:
    """Milliseconds in which the whole model, the frozen part included, answers one validation example.

    The median over a few, one at a time; the first ones are not counted.
    """
    feed, device = phase.feed, trial.team.device
    frozen, split = feed.frozen, trial.setting.data.validation
    below = None
    if feed.boundary >= 0:
        below = on_device(frozen.segment(None, feed.boundary, feed.dtype), device)
    taken = []
    phase.engine.module.eval()
    with torch.no_grad():
        for index in range(_EXAMPLES + _WARM_UP):
            rows = np.array([index % len(split)])
            columns = width(int(split.lengths[rows].max()), cap=frozen.cap)
            arrays = collate(split, rows, columns, trial.setting.data.pad_id)
            arrays.pop("labels")
            began = time.perf_counter()
            inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            states = {} if below is None else {"states": below(**inputs)}
            phase.engine(**inputs, **states).cpu()  # waits for the device
            taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken[_WARM_UP:])
