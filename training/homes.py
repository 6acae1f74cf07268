"""Where DeepSpeed keeps weights and optimizer state, and these as whole tensors by name.

The one place that knows what each ZeRO stage does with them. Between two phases they are plain
fp32 tensors on the CPU, whatever the stage or the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.optim import Group, Slots
from training.optimizers import Optimizer
from training.team import Team


@dataclass(frozen=True, kw_only=True)
class Home:
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


class Homes:
    """The thawed tensors of one engine, and their optimizer state.

    Args:
        engine: what `deepspeed.initialize` made.
        base: the optimizer that it was given.
        kind: what is known of that.
        names: `id` of each parameter of the module -> its name.
        shapes: of the thawed tensors by name, as they were before.
    """

    def __init__(
        self,
        engine: Any,
        base: torch.optim.Optimizer,
        kind: Optimizer,
        team: Team,
        *,
        names: Mapping[int, str],
        shapes: Mapping[str, torch.Size],
    ) -> None:
        self._base, self._kind, self._team = base, kind, team
        self._homes = list(_find(engine, base, team.rank, names, shapes))

    def load(
        self, weights: Mapping[str, Tensor], slots: Mapping[str, Slots], groups: Sequence[Group]
    ) -> None:
        """Set weights (all of them) and optimizer state; what has none yet in `slots` starts afresh."""
        ages = {name: group.age for group in groups for name in group.names}
        with torch.no_grad():
            for home in self._homes:
                state = self._base.state[home.flat]
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

    def weights(self) -> dict[str, Tensor]:
        """The thawed tensors by name: fp32, on the CPU, whole on every rank."""
        return self._assemble({home.name: home.master for home in self._homes})

    def slots(self) -> dict[str, Slots]:
        """The optimizer's state of the thawed tensors by name: fp32, on the CPU, whole on every rank."""
        steps = {home.name: self._steps(home) for home in self._homes}
        if self._kind.state is None:
            return {
                home.name: Slots(tensors=_tensors(self._base.state[home.flat]), steps=steps[home.name])
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

    def clear(self) -> None:
        """Let go of all of it."""
        self._homes.clear()

    def _set_steps(self, home: Home, steps: int) -> None:
        if self._kind.counts:
            on_host = self._base.__class__.__name__ == "DeepSpeedCPUAdam"
            # Fused Adam wants the count beside the weights, DeepSpeed's on the host is a number.
            count = steps if on_host else torch.tensor(float(steps), device=home.flat.device)
            self._base.state[home.flat]["step"] = count

    def _steps(self, home: Home) -> int:
        return int(self._base.state[home.flat].get("step", 0))

    def _fragment(self, home: Home, key: str) -> Tensor:
        state: Tensor = self._base.state[home.flat][key]
        return state.view(-1).narrow(0, home.offset, home.master.numel())

    def _assemble(self, fragments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from every rank's fragments, by one sum over a zero-filled buffer."""
        sharded = any(home.master.numel() != home.shape.numel() for home in self._homes)
        if not any(self._team.gather(sharded)):
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
        parts = whole.split([home.shape.numel() for home in self._homes])
        return {
            home.name: part.clone().view(home.shape) for home, part in zip(self._homes, parts, strict=True)
        }


def _find(
    engine: Any,
    base: torch.optim.Optimizer,
    rank: int,
    names: Mapping[int, str],
    shapes: Mapping[str, torch.Size],
) -> Iterator[Home]:
    """Every thawed tensor's home on this rank, in the order of the groups."""
    optimizer = engine.optimizer

    def home(parameter: Tensor, start: int, master: Tensor, flat: Tensor, offset: int) -> Home:
        name = names[id(parameter)]
        return Home(name=name, shape=shapes[name], start=start, master=master, flat=flat, offset=offset)

    if optimizer is base:  # stage 0 in fp32: the parameters themselves; in bf16 alone: `training.masters`
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


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an optimizer's state besides the step count, on the CPU."""
    return {
        key: value.detach().cpu().clone()
        for key, value in state.items()
        if key != "step" and isinstance(value, Tensor)
    }
