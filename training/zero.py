"""What DeepSpeed is told of a phase: a pure function of its settings and of the shapes that thaw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from training.config import TrainingConfig

_MAX_BUCKET_NUMEL = 50_000_000


def effective_stage(training: TrainingConfig, workers: int) -> int:
    """The ZeRO stage that DeepSpeed is given.

    Alone, a worker has nobody to shard optimizer state or gradients with: stages 1 and 2 would
    compute what stage 0 does, and copy every gradient twice for it. In fp16 stage 0 is stage 1:
    there DeepSpeed divides the gradients by a loss scale that it never applied to the loss.
    """
    stage = training.zero.stage
    if training.precision == "fp16":
        return max(stage, 1)
    alone = workers == 1 and training.zero.offload == "none"
    return 0 if alone and stage < 3 else stage


def is_plain(training: TrainingConfig, workers: int) -> bool:
    """Whether DeepSpeed steps by the optimizer that it is given, on whole fp32 tensors."""
    return effective_stage(training, workers) == 0 and (training.precision == "fp32" or workers == 1)


def has_masters(training: TrainingConfig, workers: int) -> bool:
    """Whether these lie beside the module (`training.masters`), and DeepSpeed is told of no low precision."""
    return training.precision != "fp32" and is_plain(training, workers)


def bucket_numel(shapes: Iterable[Sequence[int]]) -> int:
    """Elements of the bucket through which the gradients of tensors of these `shapes` go."""
    sizes = [math.prod(shape) for shape in shapes]
    return max(max(sizes), min(sum(sizes), _MAX_BUCKET_NUMEL))


def deepspeed_settings(
    training: TrainingConfig, *, workers: int, shapes: Iterable[Sequence[int]], on_gpu: bool
) -> dict[str, Any]:
    """The DeepSpeed configuration of a phase that thaws tensors of these `shapes`."""
    bucket = bucket_numel(shapes)
    bucket += bucket % 2  # ZeRO-1 and 2 take even ones only
    stage, plain = effective_stage(training, workers), is_plain(training, workers)
    settings: dict[str, Any] = {
        # The caller scales its losses and marks the last micro-batch: batches differ in size.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Plain gradients are whole on every rank when they are clipped, by the caller: DeepSpeed
        # would have all ranks agree on their norm, and copy a number to the device for it.
        "gradient_clipping": 0.0 if plain else training.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": False,
        },
    }
    if training.zero.offload != "none":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if training.zero.offload == "parameters":
        settings["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    if training.precision == "bf16" and not plain:
        settings["bf16"] = {"enabled": True}
    if training.precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16}
    if training.precision != "fp32" and stage > 0:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
