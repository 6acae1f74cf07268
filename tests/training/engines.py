"""Runs over several phases: on one engine a phase, and by plain torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.training.conftest import BLOCKS, VOCABULARY, assert_same, attach, tiny_model
from training import optim, suffix
from training.blocks import Blocks
from training.config import TrainingConfig, ZeroConfig
from training.engine import compute_dtype, engine
from training.optim import Slots
from training.schedules import Phase
from training.suffix import Weights
from training.team import Team

GROWING = (
    Phase(name="head", start_epoch=0.0, blocks=()),
    Phase(name="blocks", start_epoch=1.0, blocks=(1, 2)),
    Phase(name="everything", start_epoch=2.0, blocks=(0, 1, 2), embeddings=True),
)
# Blocks freeze again, in the middle and with the head; what thaws once more goes on from its moments.
WANDERING = (
    Phase(name="outer", start_epoch=0.0, blocks=(0,)),
    Phase(name="inner", start_epoch=1.0, blocks=(1,), head=False),
    Phase(name="outer-again", start_epoch=2.0, blocks=(0, 2)),
)
STEPS = 3
BATCH = 12
EPSILON = 1e-3
STAGES = (0, 1, 2, 3)


def settings(stage: int = 0, precision: str = "fp32", **other: Any) -> TrainingConfig:
    return TrainingConfig(
        learning_rate=1e-2,
        layerwise_lr_decay=0.7,
        weight_decay=0.1,
        momentum=0.8,
        adam_beta2=0.99,
        # The gradient of a key's bias is zero but for rounding, which Adam would blow up to full steps.
        adam_epsilon=EPSILON,
        # Gradients of the tiny model are some way above and below it.
        max_grad_norm=other.pop("max_grad_norm", 1.5),
        precision=precision,  # type: ignore[arg-type]
        zero=ZeroConfig(stage=stage, offload=other.pop("offload", "none")),  # type: ignore[arg-type]
        **other,
    )


def batch_of(step: int) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of sentences of 3 to 9 tokens, padded on the right."""
    draw = torch.Generator().manual_seed(step)
    ids = torch.randint(5, len(VOCABULARY), (BATCH, 9), generator=draw)
    lengths = torch.randint(3, 10, (BATCH, 1), generator=draw)
    mask = (torch.arange(9) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}, torch.randint(0, 2, (BATCH,), generator=draw)


def factor(step: int) -> float:
    return 1.0 - step / 20


@dataclass
class Outcome:
    weights: dict[str, Tensor] = field(default_factory=dict)
    slots: dict[str, Slots] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def kept(self, kind: str | None = None) -> dict[str, Tensor]:
        """The optimizer's state tensors, of one kind or of all."""
        return {
            f"{key}/{name}": tensor
            for name, slots in self.slots.items()
            for key, tensor in slots.tensors.items()
            if kind in (None, key)
        }

    def steps(self) -> dict[str, int]:
        return {name: slots.steps for name, slots in self.slots.items()}


def depth_of(name: str) -> int:
    """Blocks from the top, read off the name; -1 for the head."""
    if name.startswith("bert.embeddings."):
        return BLOCKS
    return BLOCKS - 1 - int(name.split(".")[3]) if ".layer." in name else -1


def reference(phases: Sequence[Phase], training: TrainingConfig) -> Outcome:
    """One optimizer over the whole run, one parameter a group, the whole model at once."""
    model = tiny_model().eval()
    named = dict(model.named_parameters())
    rates = {name: training.learning_rate * 0.7 ** max(0, depth_of(name)) for name in named}
    groups = [{"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for p in named.values()]
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=EPSILON)
    elif training.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.8)
    else:
        optimizer = torch.optim.Adafactor(groups)
    outcome = Outcome()
    for number, phase in enumerate(phases):
        units = {BLOCKS - 1 - block for block in phase.blocks}
        units |= ({-1} if phase.head else set()) | ({BLOCKS} if phase.embeddings else set())
        for name, parameter in named.items():
            parameter.requires_grad_(depth_of(name) in units)
        for step in range(number * STEPS, (number + 1) * STEPS):
            optimizer.zero_grad(set_to_none=True)
            inputs, labels = batch_of(step)
            loss = cross_entropy(model(**inputs).logits, labels)
            loss.backward()
            if training.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
            for group, name in zip(optimizer.param_groups, named, strict=True):
                group["lr"] = rates[name] * factor(step)
            optimizer.step()
            outcome.losses.append(loss.item())
    for name, parameter in named.items():
        if state := dict(optimizer.state.get(parameter, {})):
            outcome.weights[name] = parameter.detach()
            outcome.slots[name] = Slots(steps=int(state.pop("step", 0)), tensors=state)
    return outcome


def drive(
    team: Team,
    phases: Sequence[Phase],
    training: TrainingConfig,
    accumulation: int,
    scaler: dict[str, float] | None = None,
) -> Outcome:
    """The same run on one engine a phase, as the training loop does it, with its seams checked."""
    blocks = Blocks(tiny_model())
    outcome = Outcome()
    for number, phase in enumerate(phases):
        own, slots = outcome.weights, outcome.slots
        module = suffix.build(phase, blocks, own, dropout=0.0).to(team.device)
        shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        ages = {name: slot.steps for name, slot in slots.items()}
        groups = optim.groups(shapes, blocks=blocks, shapes=shapes, ages=ages, training=training)
        boundary = suffix.boundary(phase, blocks, own)
        below = None if boundary < 0 else blocks.prefix(boundary, compute_dtype(training.precision))
        # A copy: in fp32 it shares the memory of the model, which would move with it.
        prefix = None if below is None else copy.deepcopy(below).to(team.device)
        with engine(
            module,
            groups=groups,
            weights=own,
            slots=slots,
            training=training,
            team=team,
            scaler=scaler,
        ) as live:
            present = Weights(blocks, own)
            assert_same(live.weights(), {name: present[name] for name in shapes})
            before = live.slots()
            assert {name: slot.steps for name, slot in before.items()} == {n: ages.get(n, 0) for n in shapes}
            for name, slot in before.items():
                empty = {} if training.optimizer == "adafactor" else slot.tensors
                fresh = {key: torch.zeros(shapes[name]) for key in empty}
                assert_same(slot.tensors, slots[name].tensors if name in slots else fresh)
            suffix.set_modes(live.module, phase, blocks)
            for step in range(number * STEPS, (number + 1) * STEPS):
                loss = torch.zeros((), device=team.device)
                inputs, labels = batch_of(step)
                for index in range(accumulation):
                    rows = slice(index * team.size + team.rank, None, accumulation * team.size)
                    micro = {name: tensor[rows].to(team.device) for name, tensor in inputs.items()}
                    logits = live(**attach(prefix, micro)).float()
                    part = cross_entropy(logits, labels[rows].to(team.device), reduction="sum") / BATCH
                    live.backward(part * team.size, last=index == accumulation - 1)
                    loss += part.detach()
                live.step(factor(step))
                outcome.losses.append(float(team.sum(loss)))
            frozen = {name: tensor.float().cpu().clone() for name, tensor in live.frozen()}
            dtype = compute_dtype(training.precision)
            assert_same(frozen, {name: present[name].to(dtype).float() for name in frozen})
            names = {name for name, _ in live.module.named_parameters()}
            assert set(frozen) == names - set(shapes)
            low = {name: p.detach().float().cpu() for name, p in live.module.named_parameters()}
            outcome.weights = {**own, **live.weights()}
            outcome.slots = {**slots, **live.slots()}
            if training.zero.stage < 3:  # what computes is what is kept, at its precision
                for name in shapes:
                    assert torch.equal(low[name], outcome.weights[name].to(dtype).float()), name
            scaler = live.scaler
    return outcome


def drive_all(team: Team, cases: Sequence[tuple[Any, ...]]) -> list[Outcome]:
    return [drive(team, *case) for case in cases]


def cases(stages: Sequence[int], precision: str = "fp32") -> list[tuple[Any, ...]]:
    """Phases, settings and accumulation of runs at some ZeRO stages."""
    growing = [(GROWING, settings(stage, precision), 3) for stage in stages]
    unclipped = [(WANDERING, settings(stage, precision, max_grad_norm=0.0), 1) for stage in stages]
    return [*growing, *unclipped]
