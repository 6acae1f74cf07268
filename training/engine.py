"""One DeepSpeed engine for one phase, and the only import of DeepSpeed.

ZeRO fixes its parameter groups when it is initialised: what thaws later never trains, what
freezes later drifts. So a phase is an engine, and between two of them weights and Adam
moments live here as plain fp32 tensors by name, whatever the ZeRO stage or the number of
workers. `_slots` is the one place that knows where DeepSpeed keeps them.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.config import TrainingConfig
from training.optim import Group, Moments
from training.team import Team

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import logger as _deepspeed_logger

_deepspeed_logger.setLevel(logging.ERROR)
# Its shared-memory all-reduce is compiled at first use: a minute or two and a C++ compiler
# for what gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# Its bf16 optimizer prints the memory in use after every group, after a full collection each.
deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *_, **__: None

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_BUCKET_NUMEL = 50_000_000


def compute_dtype(precision: str) -> torch.dtype:
    """The torch type that `precision` computes in."""
    return _DTYPES[precision]


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """Where this rank keeps its part of one thawed tensor.

    Elements `start` and on of the flattened tensor are `master` (fp32, 1-D, perhaps empty);
    their moments lie at `offset` in the optimizer's state of `flat`.
    """

    name: str
    shape: torch.Size
    start: int
    master: Tensor
    flat: Tensor
    offset: int


class Engine:
    """The engine of one phase.

    Args:
        module: the suffix of the model; its thawed parameters have `requires_grad` set.
        groups: the parameter groups, in an order that is the same on all ranks.
        weights: fp32 values of thawed tensors that differ from those in `module` by no more
            than the rounding of a low precision; those in `module` where absent.
        moments: Adam state that an earlier phase left; fresh where absent.
        loss_scale: the dynamic loss scale that an earlier phase left (fp16).
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        groups: Sequence[Group],
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Moments],
        training: TrainingConfig,
        team: Team,
        loss_scale: float | None = None,
    ) -> None:
        self._team = team
        self._groups = tuple(groups)
        parameters = dict(module.named_parameters())
        originals = {
            name: parameters[name].detach().cpu().clone() for group in groups for name in group.names
        }
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._shapes = {name: parameters[name].shape for group in groups for name in group.names}
        self._adam = torch.optim.AdamW(
            [
                {
                    "params": [parameters[name] for name in group.names],
                    "lr": group.learning_rate,
                    "weight_decay": group.weight_decay,
                }
                for group in groups
            ],
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            fused=True,
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._adam,
            config=_settings(training, team.size, self._shapes),
            dist_init_required=False,
        )
        self._slots = list(_slots(self._engine, self._adam, team.rank, self._names, self._shapes))
        self._load(originals | {name: weights[name] for name in originals if name in weights}, moments)
        scaler: Any = getattr(self._engine.optimizer, "loss_scaler", None)
        if loss_scale is not None and hasattr(scaler, "cur_scale"):
            scaler.cur_scale = loss_scale

    def __call__(self, **inputs: Tensor) -> Tensor:
        """Logits of the module for `inputs`."""
        return self._engine(**inputs).logits

    @property
    def module(self) -> nn.Module:
        """The suffix that trains here."""
        module = self._engine.module
        assert isinstance(module, nn.Module)
        return module

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss` (scalar); `last` marks the last micro-batch of the step.

        Gradients are averaged over ranks and summed over micro-batches.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr_factor: float) -> None:
        """One optimizer step at `lr_factor` times the groups' learning rates."""
        for group, settings in zip(self._groups, self._adam.param_groups, strict=True):
            settings["lr"] = group.learning_rate * lr_factor
        self._engine.step()

    @property
    def skipped_steps(self) -> int:
        """Steps that fp16 loss scaling skipped so far."""
        return int(self._engine.skipped_steps)

    @property
    def loss_scale(self) -> float | None:
        """The dynamic loss scale (fp16), to go on with in the next phase."""
        scale = getattr(getattr(self._engine.optimizer, "loss_scaler", None), "cur_scale", None)
        return None if scale is None else float(scale)

    def weights(self) -> dict[str, Tensor]:
        """The thawed tensors by name: fp32, on the CPU, whole on every rank."""
        return self._assemble({slot.name: slot.master for slot in self._slots})

    def moments(self) -> dict[str, Moments]:
        """Adam's state of the thawed tensors by name: fp32, on the CPU, whole on every rank."""
        first = self._assemble({slot.name: self._fragment(slot, "exp_avg") for slot in self._slots})
        second = self._assemble({slot.name: self._fragment(slot, "exp_avg_sq") for slot in self._slots})
        ages = {slot.name: int(self._adam.state[slot.flat]["step"]) for slot in self._slots}
        return {
            name: Moments(exp_avg=first[name], exp_avg_sq=second[name], steps=ages[name]) for name in first
        }

    def frozen(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the module that do not train, by name, whole, one at a time."""
        for parameter in self.module.parameters():
            if not parameter.requires_grad:
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield self._names[id(parameter)], parameter.detach()

    def close(self) -> None:
        """Give back everything that the engine holds."""
        self._engine.destroy()
        self._adam.state.clear()
        self._adam.param_groups.clear()
        self._slots.clear()
        del self._engine
        # Engine and module refer to each other through hooks: only the collector frees them.
        gc.collect()
        if self._team.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Moments]) -> None:
        ages = {name: group.age for group in self._groups for name in group.names}
        with torch.no_grad():
            for slot in self._slots:
                state = self._adam.state[slot.flat]
                # Fused Adam wants the count beside the weights. In a low precision DeepSpeed has taken
                # a step on zeros by now, which does not count.
                state["step"] = torch.tensor(float(ages[slot.name]), device=slot.flat.device)
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(slot.flat)
                    state["exp_avg_sq"] = torch.zeros_like(slot.flat)
                stop = slot.start + slot.master.numel()
                slot.master.copy_(weights[slot.name].reshape(-1)[slot.start : stop])
                if slot.name in moments:
                    carried = moments[slot.name]
                    self._fragment(slot, "exp_avg").copy_(carried.exp_avg.reshape(-1)[slot.start : stop])
                    self._fragment(slot, "exp_avg_sq").copy_(
                        carried.exp_avg_sq.reshape(-1)[slot.start : stop]
                    )

    def _fragment(self, slot: _Slot, key: str) -> Tensor:
        state: Tensor = self._adam.state[slot.flat][key]
        return state.view(-1).narrow(0, slot.offset, slot.master.numel())

    def _assemble(self, fragments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from every rank's fragments, by one sum over a zero-filled buffer."""
        sharded = any(slot.master.numel() != slot.shape.numel() for slot in self._slots)
        if not self._team.gather(sharded).count(True):
            return {
                slot.name: fragments[slot.name].detach().cpu().clone().view(slot.shape)
                for slot in self._slots
            }
        total = sum(slot.shape.numel() for slot in self._slots)
        buffer = torch.zeros(total, dtype=torch.float32, device=self._team.device)
        at = 0
        for slot in self._slots:
            fragment = fragments[slot.name]
            buffer.narrow(0, at + slot.start, fragment.numel()).copy_(fragment.detach())
            at += slot.shape.numel()
        whole = self._team.sum(buffer).cpu()
        sizes = [slot.shape.numel() for slot in self._slots]
        parts = whole.split(sizes)
        return {
            slot.name: part.clone().view(slot.shape) for slot, part in zip(self._slots, parts, strict=True)
        }


@contextmanager
def engine(module: nn.Module, **settings: Any) -> Iterator[Engine]:
    """An `Engine` that is closed at the end of the block, whatever happens in it."""
    linear = torch.nn.functional.linear
    try:
        live = Engine(module, **settings)
        try:
            yield live
        finally:
            live.close()
    finally:
        # ZeRO-3 puts its own in place for good: later trials of the process would round otherwise.
        torch.nn.functional.linear = linear


def effective_stage(training: TrainingConfig, workers: int) -> int:
    """The ZeRO stage that DeepSpeed is given.

    Alone, a worker has nobody to shard optimizer state or gradients with: stages 1 and 2 would
    compute what stage 0 does, and copy every gradient twice for it. In fp16 stage 0 is stage 1:
    there DeepSpeed divides the gradients by a loss scale that it never applied to the loss.
    """
    stage = training.zero.stage
    if training.precision == "fp16":
        return max(stage, 1)
    alone = workers == 1 and training.precision == "fp32" and training.zero.offload == "none"
    return 0 if alone and stage < 3 else stage


def _settings(training: TrainingConfig, workers: int, shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    """The DeepSpeed configuration of a phase that thaws tensors of these `shapes`."""
    sizes = [shape.numel() for shape in shapes.values()]
    bucket = max(max(sizes), min(sum(sizes), _MAX_BUCKET_NUMEL))
    bucket += bucket % 2  # ZeRO-1 and 2 take even ones only
    stage = effective_stage(training, workers)
    settings: dict[str, Any] = {
        # The caller scales its losses and marks the last micro-batch: batches differ in size.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.max_grad_norm,
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
    if training.precision == "bf16":
        settings["bf16"] = {"enabled": True}
    if training.precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16}
    if training.precision != "fp32" and stage > 0:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _slots(
    engine: Any,
    adam: torch.optim.AdamW,
    rank: int,
    names: Mapping[int, str],
    shapes: Mapping[str, torch.Size],
) -> Iterator[_Slot]:
    """Every thawed tensor's slot on this rank, in the order of the groups."""
    optimizer = engine.optimizer

    def slot(parameter: Tensor, start: int, master: Tensor, flat: Tensor, offset: int) -> _Slot:
        name = names[id(parameter)]
        return _Slot(name=name, shape=shapes[name], start=start, master=master, flat=flat, offset=offset)

    if optimizer is adam:  # stage 0 in fp32: the parameters themselves
        for group in adam.param_groups:
            for parameter in group["params"]:
                yield slot(parameter, 0, parameter.data.view(-1), parameter, 0)
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3
        for index, group in enumerate(optimizer.fp16_groups):
            flat = optimizer.fp32_partitioned_groups_flat[index]
            for parameter in group:
                _, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
                start = min(rank * numel, parameter.ds_numel)
                present = min(numel, parameter.ds_numel - start)  # the last rank's part is padded
                yield slot(parameter, start, flat.data.narrow(0, offset, present), flat, offset)
    elif hasattr(optimizer, "fp32_groups"):  # stage 0 in a low precision: a master beside each parameter
        for halves, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, master in zip(halves, masters, strict=True):
                yield slot(parameter, 0, master.data.view(-1), master, 0)
    else:  # stages 1 and 2: fragments of one flat partition a group
        zero = hasattr(optimizer, "single_partition_of_fp32_groups")
        flats = optimizer.single_partition_of_fp32_groups if zero else optimizer.fp32_groups_flat_partition
        for flat, group in zip(flats, optimizer.bit16_groups if zero else optimizer.bf16_groups, strict=True):
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is None:  # all of it on other ranks
                    yield slot(parameter, 0, flat.data.narrow(0, 0, 0), flat, 0)
                else:
                    address = mapping.lp_fragment_address
                    yield slot(
                        parameter,
                        address.start,
                        mapping.hp_fragment.data.view(-1),
                        flat,
                        mapping.hp_fragment_address.start,
                    )
