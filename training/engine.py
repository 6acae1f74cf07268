"""One DeepSpeed engine for one phase, and the only import of DeepSpeed.

ZeRO fixes its parameter groups when it is initialised: what thaws later never trains, what
freezes later drifts. So a phase is an engine, and between two of them weights and
optimizer state live as plain fp32 tensors by name (`training.homes`).
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from training.config import TrainingConfig
from training.homes import Homes
from training.masters import Masters
from training.optim import Group, Slots
from training.optimizers import OPTIMIZERS, Optimizer
from training.team import Team
from training.transfer import release
from training.zero import deepspeed_settings, has_masters, is_plain

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
# A cache of what ZeRO-3's coordinators release, by coordinator and module: it keeps them all for good.
_COORDINATOR = deepspeed.runtime.zero.partitioned_param_coordinator.PartitionedParameterCoordinator
_RELEASES = inspect.getclosurevars(
    vars(_COORDINATOR)["_PartitionedParameterCoordinator__params_to_release"]
).nonlocals["func"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SCALER_FIELDS = ("cur_scale", "cur_hysteresis", "cur_iter", "last_overflow_iter")


def compute_dtype(precision: str) -> torch.dtype:
    """The torch type that `precision` computes in."""
    return _DTYPES[precision]


class GradientOverflow(RuntimeError):
    """Gradients overflow fp16 at the smallest loss scale there is."""


class Engine:
    """The engine of one phase.

    Args:
        module: the suffix of the model; its thawed parameters have `requires_grad` set.
        groups: the parameter groups, in an order that is the same on all ranks.
        weights: fp32 values of thawed tensors that differ from those in `module` by no more
            than the rounding of a low precision; those in `module` where absent.
        slots: optimizer state that an earlier phase left; fresh where absent.
        scaler: the state of the dynamic loss scale that an earlier phase left (fp16).
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
        scaler: Mapping[str, float] | None = None,
    ) -> None:
        self._team = team
        self._groups = tuple(groups)
        parameters = dict(module.named_parameters())
        originals = {
            name: parameters[name].detach().cpu().clone() for group in groups for name in group.names
        }
        shapes = {name: tensor.shape for name, tensor in originals.items()}
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._masters: Masters | None = None
        if has_masters(training, team.size):
            self._masters = Masters(module, compute_dtype(training.precision))
            parameters = {name: self._masters.of(parameters[name]) for name in originals}
            self._names |= {id(parameter): name for name, parameter in parameters.items()}
        kind = OPTIMIZERS[training.optimizer]
        grouped = [
            {
                "params": [parameters[name] for name in group.names],
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ]
        self._optimizer = _build(kind, grouped, training)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._optimizer,
            config=deepspeed_settings(
                training, workers=team.size, shapes=shapes.values(), on_gpu=team.device.type == "cuda"
            ),
            dist_init_required=False,
        )
        plain = is_plain(training, team.size)
        if plain and team.size == 1:
            # There is nobody to average with, and it would copy all gradients there and back for it.
            self._engine.enable_backward_allreduce = False
        # See `deepspeed_settings`.
        self._clip_norm = training.max_grad_norm if plain else 0.0
        self._trained = [parameters[name] for group in groups for name in group.names]
        self._homes = Homes(self._engine, self._optimizer, kind, team, names=self._names, shapes=shapes)
        known = originals | {name: weights[name] for name in originals if name in weights}
        self._homes.load(known, slots, groups)
        self._scaler: Any = getattr(self._engine.optimizer, "loss_scaler", None)
        if scaler is not None and training.precision == "fp16":
            for field in _SCALER_FIELDS:
                setattr(self._scaler, field, scaler.get(field, getattr(self._scaler, field)))

    def __call__(self, **inputs: Any) -> Tensor:
        """Logits of the module for `inputs`."""
        return self._engine(**inputs).logits

    def evaluated(self, **inputs: Any) -> Tensor:
        """Logits of the module for `inputs`, in fp32, without gradient."""
        # What ZeRO-3 gathers on the way it keeps, and training goes on with.
        sharded = self._engine.zero_optimization_stage() == 3
        with torch.no_grad() if sharded else torch.inference_mode():
            return self(**inputs).float()

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
        if self._masters is not None:
            self._masters.collect()

    def step(self, lr_factor: float) -> None:
        """One optimizer step at `lr_factor` times the groups' learning rates.

        Raises:
            GradientOverflow: where fp16 cannot hold the gradients at any loss scale.
        """
        for group, settings in zip(self._groups, self._optimizer.param_groups, strict=True):
            settings["lr"] = group.learning_rate * lr_factor
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(self._trained, self._clip_norm)
        try:
            self._engine.step()
        except Exception as error:  # DeepSpeed has no type of its own for it
            if "loss scale already at minimum" in str(error):
                raise GradientOverflow("gradients overflow fp16 at the smallest loss scale") from error
            raise
        if self._masters is not None:
            self._masters.spread()

    @property
    def skipped_steps(self) -> int:
        """Steps that fp16 loss scaling skipped so far."""
        return int(self._engine.skipped_steps)

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by, and gradients divided (fp16); else 1."""
        return float(getattr(self._scaler, "cur_scale", 1.0))

    @property
    def scaler(self) -> dict[str, float] | None:
        """The state of the dynamic loss scale (fp16), to go on with in the next phase."""
        if not hasattr(self._scaler, "cur_hysteresis"):
            return None
        return {field: getattr(self._scaler, field) for field in _SCALER_FIELDS}

    def weights(self) -> dict[str, Tensor]:
        """The thawed tensors by name: fp32, on the CPU, whole on every rank."""
        return self._homes.weights()

    def slots(self) -> dict[str, Slots]:
        """The optimizer's state of the thawed tensors by name: fp32, on the CPU, whole on every rank."""
        return self._homes.slots()

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
        if self._masters is not None:
            self._masters.clear()
        self._scaler = None
        self._trained.clear()
        # ZeRO-3 notes every module that it makes an engine of, and every coordinator, for good.
        deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK.clear()
        _RELEASES.cache_clear()
        del self._engine
        # Engine and module refer to each other through hooks: only the collector frees them, and what
        # autograd's nodes held comes free once those are gone.
        gc.collect()
        release(self._team.device)


@contextmanager
def engine(module: nn.Module, **settings: Any) -> Iterator[Engine]:
    """An `Engine` that is closed at the end of the block, whatever happens in it."""
    linear = torch.nn.functional.linear
    try:
        live = Engine(module, **settings)
        del module  # or it would outlive the engine
        try:
            yield live
        finally:
            live.close()
    finally:
        # ZeRO-3 puts its own in place for good: later trials of the process would round otherwise.
        torch.nn.functional.linear = linear


def _build(kind: Optimizer, groups: list[dict[str, Any]], training: TrainingConfig) -> torch.optim.Optimizer:
    if training.zero.offload == "none":
        return kind.build(groups, training)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    betas = (training.adam_beta1, training.adam_beta2)
    return DeepSpeedCPUAdam(groups, betas=betas, eps=training.adam_epsilon, adamw_mode=True)
