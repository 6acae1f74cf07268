"""The largest micro-batch that fits on a GPU, measured on the gang before a phase begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from training import memory, suffix
from training.checkpoint import State
from training.opening import opened
from training.schedules import Phase
from training.sizes import EVALUATION_TOKENS, Sizes, tighter
from training.transfer import release
from training.trial import Trial, is_out_of_memory

# Of the free memory: what is left is for fragments, and for what libraries allocate by themselves.
_SHARE = 0.9


def fitting(trial: Trial, phase: Phase, state: State, at: str) -> Sizes:
    """What goes through the model at once in a phase: as set, or what fits; as far as is known.

    On a GPU what fits is measured, once on a gang for each `at` (see `training.sizes.key`).
    """
    training, setting, team = trial.config.training, trial.setting, trial.team
    on_gpu = team.device.type == "cuda"
    device: memory.Device = "cuda" if on_gpu else "cpu"
    sizes = Sizes(
        micro_batch=memory.micro_batch(training, workers=team.size, device=device),
        evaluation_tokens=EVALUATION_TOKENS[device],
    )
    if on_gpu and training.micro_batch_size == "auto":
        sizes = replace(sizes, micro_batch=-(-training.batch_size // team.size))
        wanted = tighter(sizes, setting.limits.get(at)).micro_batch
        if wanted > setting.proven.get(at, 0):
            found = _measured(trial, phase, state, wanted)
            setting.proven[at] = found
            if found < wanted:
                setting.limits[at] = tighter(replace(sizes, micro_batch=found), setting.limits.get(at))
    return tighter(sizes, setting.limits.get(at))


def largest(peak: Callable[[int], float], *, reach: int, budget: float, example: float) -> int:
    """The largest power of two up to the first from `reach` on whose peak is within `budget`; at least 1.

    Doubles while the next peak, if it goes on growing in line, is within the budget: so nothing
    runs out of memory in the search, and the result does not depend on `reach` where it is smaller.

    Args:
        peak: micro-batch -> bytes at the peak of a step.
        example: bytes by which one more example raises it, as a first guess.
    """
    size, height = 1, peak(1)
    while size < reach and height + size * example <= budget:
        next_height = peak(2 * size)
        if next_height > budget:
            break
        # An allocator rounds: it may not have grown at all.
        example = max((next_height - height) / size, 0.0)
        size, height = 2 * size, next_height
    return size


def _measured(trial: Trial, phase: Phase, state: State, reach: int) -> int:
    """The largest micro-batch for a phase, tried on an engine of its own, which then goes away."""
    setting, team, device = trial.setting, trial.team, trial.team.device
    training = trial.config.training
    longest = np.argsort(-setting.data.train.lengths, kind="stable")
    release(device)
    spare = _spare(device)
    before = torch.cuda.memory_allocated(device)
    guess = memory.estimate(
        memory.shape_of(setting.blocks), training, phase, tokens=setting.max_length, device="cuda"
    )
    with opened(trial, phase, state) as phase_:
        suffix.set_modes(phase_.engine.module, phase, setting.blocks)

        def peak(size: int) -> float:
            """Bytes at the peak of a step, the most of any rank."""
            torch.cuda.reset_peak_memory_stats(device)
            try:
                loss = phase_.losses(phase_.feed.rows("train", np.resize(longest, size))).mean()
                phase_.engine.backward(loss, last=True)
                phase_.engine.step(0.0)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or team.size > 1 or not is_out_of_memory(error):
                    raise
                return math.inf
            return max(team.gather(torch.cuda.max_memory_allocated(device) - before))

        budget = min(team.gather(_SHARE * spare))
        return largest(peak, reach=reach, budget=budget, example=guess.activations)


def _spare(device: torch.device) -> int:
    """Bytes that this process can still allocate, with what its allocator keeps."""
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    share = torch.cuda.get_per_process_memory_fraction(device) * total
    return int(min(free + cached, share - torch.cuda.memory_allocated(device)))
