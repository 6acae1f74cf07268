"""One DeepSpeed engine for one phase, and the only import of DeepSpeed.

ZeRO fixes its parameter groups when it is initialised: what thaws later never trains, what
freezes later drifts. So a phase is an engine, and between two of them weights and
optimizer state live here as plain fp32 tensors by name, whatever the ZeRO stage or the number of
workers. `_homes` is the one place that knows where DeepSpeed keeps them.
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
from training.optim import Group, Slots
from training.optimizers import OPTIMIZERS, Optimizer
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
class _Home:
    """Where this rank keeps its part of one thawed tensor.

    Elements `start` and on of the flattened tensor are `master` (fp32, 1-D, perhaps empty);
    their optimizer state lies at `offset` in that of `flat`.
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
        slots: optimizer state that an earlier phase left; fresh where absent.
        loss_scale: the dynamic loss scale that an earlier phase left (fp16).
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        groups: Sequence[Group],
        weights: Mapping[str, Tensor],
        slots: Mapping[str, Slots],
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
        self._kind = OPTIMIZERS[training.optimizer]
        grouped = [
            {
                "params": [parameters[name] for name in group.names],
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ]
        self._optimizer = _build(self._kind, grouped, training)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._optimizer,
            config=_settings(training, team.size, self._shapes),
            dist_init_required=False,
        )
        self._homes = list(_homes(self._engine, self._optimizer, team.rank, self._names, self._shapes))
        self._load(originals | {name: weights[name] for name in originals if name in weights}, slots)
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
        for group, settings in zip(self._groups, self._optimizer.param_groups, strict=True):
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
        return self._assemble({home.name: home.master for home in self._homes})

    def slots(self) -> dict[str, Slots]:
        """The optimizer's state of the thawed tensors by name: fp32, on the CPU, whole on every rank."""
        steps = {home.name: self._steps(home) for home in self._homes}
        if self._kind.state is None:
            return {
                home.name: Slots(tensors=_tensors(self._optimizer.state[home.flat]), steps=steps[home.name])
                for home in self._homes
            }
        parts = {
            key: self._assemble({home.name: self._fragment(home, key) for home in self._homes})
            for key in self._kind.state
        }
        return {
            name: Slots(tensors={key: whole[name] for key, whole in parts.items()}, steps=steps[name])
            for name in steps
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
        self._optimizer.state.clear()
        self._optimizer.param_groups.clear()
        self._homes.clear()
        del self._engine
        # Engine and module refer to each other through hooks: only the collector frees them.
        gc.collect()
        if self._team.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, weights: Mapping[str, Tensor], slots: Mapping[str, Slots]) -> None:
        ages = {name: group.age for group in self._groups for name in group.names}
        with torch.no_grad():
            for home in self._homes:
                state = self._optimizer.state[home.flat]
                stop = home.start + home.master.numel()
                home.master.copy_(weights[home.name].reshape(-1)[home.start : stop])
                carried = slots.get(home.name)
                if self._kind.state is None:
                    # Whole tensors of shapes of their own; without any it makes them at its first step.
                    state.clear()
                    if carried is not None and carried.tensors:
                        state.update({key: t.to(home.flat.device) for key, t in carried.tensors.items()})
                        state["step"] = torch.tensor(float(carried.steps), device=home.flat.device)
                    continue
                # In a low precision DeepSpeed has taken a step on zeros by now, which does not count.
                self._set_steps(home, ages[home.name])
                for key in self._kind.state:
                    if not isinstance(state.get(key), Tensor):
                        state[key] = torch.zeros_like(home.flat)
                    if carried is not None:
                        whole = carried.tensors[key].reshape(-1)
                        self._fragment(home, key).copy_(whole[home.start : stop])

    def _set_steps(self, home: _Home, steps: int) -> None:
        if self._kind.counts:
            on_host = self._optimizer.__class__.__name__ == "DeepSpeedCPUAdam"
            # Fused Adam wants the count beside the weights, DeepSpeed's on the host is a number.
            count = steps if on_host else torch.tensor(float(steps), device=home.flat.device)
            self._optimizer.state[home.flat]["step"] = count

    def _steps(self, home: _Home) -> int:
        return int(self._optimizer.state[home.flat].get("step", 0))

    def _fragment(self, home: _Home, key: str) -> Tensor:
        state: Tensor = self._optimizer.state[home.flat][key]
        return state.view(-1).narrow(0, home.offset, home.master.numel())

    def _assemble(self, fragments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from every rank's fragments, by one sum over a zero-filled buffer."""
        sharded = any(home.master.numel() != home.shape.numel() for home in self._homes)
        if not self._team.gather(sharded).count(True):
            return {
                home.name: fragments[home.name].detach().cpu().clone().view(home.shape)
                for home in self._homes
            }
        total = sum(home.shape.numel() for home in self._homes)
        buffer = torch.zeros(total, dtype=torch.float32, device=self._team.device)
        at = 0
        for home in self._homes:
            fragment = fragments[home.name]
            buffer.narrow(0, at + home.start, fragment.numel()).copy_(fragment.detach())
            at += home.shape.numel()
        whole = self._team.sum(buffer).cpu()
        sizes = [home.shape.numel() for home in self._homes]
        parts = whole.split(sizes)
        return {
            home.name: part.clone().view(home.shape) for home, part in zip(self._homes, parts, strict=True)
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


def _build(kind: Optimizer, groups: list[dict[str, Any]], training: TrainingConfig) -> torch.optim.Optimizer:
    if training.zero.offload == "none":
        return kind.build(groups, training)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    betas = (training.adam_beta1, training.adam_beta2)
    return DeepSpeedCPUAdam(groups, betas=betas, eps=training.adam_epsilon, adamw_mode=True)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an optimizer's state besides the step count, on the CPU."""
    return {
        key: value.detach().cpu().clone()
        for key, value in state.items()
        if key != "step" and isinstance(value, Tensor)
    }


def _settings(training: TrainingConfig, workers: int, shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    """The DeepSpeed configuration of a phase that thaws tensors of these `shapes`."""
    sizes = [shape.numel() for shape in shapes.values()]
    bucket = max(max(sizes), min(sum(sizes), _MAX_BUCKET_NUMEL))
    bucket += bucket % 2  # ZeRO-1 and 2 take even ones only
    stage = effective_stage(training, workers)
    on_gpu = torch.cuda.is_available()
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
    if training.zero.offload != "none":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if training.zero.offload == "parameters":
        settings["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    if training.precision == "bf16":
        settings["bf16"] = {"enabled": True}
    if training.precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16}
    if training.precision != "fp32" and stage > 0:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _homes(
    engine: Any,
    base: torch.optim.Optimizer,
    rank: int,
    names: Mapping[int, str],
    shapes: Mapping[str, torch.Size],
) -> Iterator[_Home]:
    """Every thawed tensor's home on this rank, in the order of the groups."""
    optimizer = engine.optimizer

    def home(parameter: Tensor, start: int, master: Tensor, flat: Tensor, offset: int) -> _Home:
        name = names[id(parameter)]
        return _Home(name=name, shape=shapes[name], start=start, master=master, flat=flat, offset=offset)

    if optimizer is base:  # stage 0 in fp32: the parameters themselves
        for group in base.param_groups:
            for parameter in group["params"]:
                yield home(parameter, 0, parameter.data.view(-1), parameter, 0)
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3
        for index, group in enumerate(optimizer.fp16_groups):
            flat = optimizer.fp32_partitioned_groups_flat[index]
            for parameter in group:
                _, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
                start = min(rank * numel, parameter.ds_numel)
                present = min(numel, parameter.ds_numel - start)  # the last rank's part is padded
                yield home(parameter, start, flat.data.narrow(0, offset, present), flat, offset)
    elif hasattr(optimizer, "fp32_groups"):  # stage 0 in a low precision: a master beside each parameter
        for halves, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, master in zip(halves, masters, strict=True):
                yield home(parameter, 0, master.data.view(-1), master, 0)
    else:  # stages 1 and 2: fragments of one flat partition a group
        zero = hasattr(optimizer, "single_partition_of_fp32_groups")
        flats = optimizer.single_partition_of_fp32_groups if zero else optimizer.fp32_groups_flat_partition
        for flat, group in zip(flats, optimizer.bit16_groups if zero else optimizer.bf16_groups, strict=True):
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is None:  # all of it on other ranks
                    yield home(parameter, 0, flat.data.narrow(0, 0, 0), flat, 0)
                else:
                    address = mapping.lp_fragment_address
                    yield home(
                        parameter,
                        address.start,
                        mapping.hp_fragment.data.view(-1),
                        flat,
                        mapping.hp_fragment_address.start,
                    )
