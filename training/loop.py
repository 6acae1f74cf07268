"""`train`: one trial from its first step, or from a checkpoint, to its end. Reads top to bottom."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from training import batches, checkpoint, memory, optim, suffix
from training.checkpoint import Checkpoint, State, Told
from training.config import TrainingConfig, TrialConfig
from training.engine import Engine, compute_dtype, engine
from training.evaluate import evaluate, tensors
from training.optimizers import OPTIMIZERS, check
from training.plan import Stretch, plan
from training.prefix import Prefix
from training.proof import BrokenProof, Witness, prove
from training.reporter import Course, Evaluation, PhaseOutline, Progress, Reporter, Verdict
from training.rng import derive
from training.schedules import describe
from training.suffix import Weights
from training.trial import (
    PATIENCE_STEPS,
    Diverged,
    Infeasible,
    OutOfMemory,
    TooLarge,
    Trial,
    class_weights,
    is_last,
)
from training.workspace import Workspace

# What is left of a gradient at least, where micro-batches and ranks cancel each other.
_UNCANCELLED = 2.0**-6


def train(
    config: TrialConfig,
    *,
    workspace: Workspace,
    reporter: Reporter,
    directory: Path,
    micro_limit: int | None = None,
) -> Verdict:
    """Train one trial, from its newest checkpoint if it has one. Every rank calls it alike.

    Args:
        directory: where its checkpoints are, seen by all ranks.
        micro_limit: largest micro-batch that is known to fit, where that is known.

    Returns:
        CONTINUE when it ran to its end, STOP when the reporter stopped it.

    Raises:
        ValueError: where the configuration does not fit the model or the data.
        BrokenProof: where a phase did not train what its schedule says.
        Diverged: where the loss is no longer finite.
        Infeasible: where even a micro-batch of one example does not fit in memory.
        OutOfMemory: where a step does not fit, and there are several workers.
    """
    check(config.training)
    team = workspace.team
    setting = workspace.open(config)
    course = plan(
        config.training,
        num_blocks=setting.blocks.num_blocks,
        num_examples=len(setting.data.train),
        seed=config.seed,
    )
    trial = Trial(
        config=config,
        setting=setting,
        plan=course,
        team=team,
        reporter=reporter,
        directory=directory,
        history=[],
        class_weights=class_weights(config, setting, team),
    )
    if micro_limit is not None:
        limits = setting.micro_limits
        limits.update(
            {
                at: min(micro_limit, limits.get(at, micro_limit))
                for at in range(-1, setting.blocks.num_blocks + 1)
            }
        )
    if team.leads:
        checkpoint.clean(directory)
    found = checkpoint.newest(directory, trial.identity)
    state = found.state if found else State(step=0, weights=setting.fresh_weights(config.seed))
    if team.leads:
        reporter.started(_outline(trial, state.step))
    if found:
        trial.history.extend(found.history)
        # Its evaluation may not have reached anyone before the trial was cut off: it is told again.
        if _report_evaluation(trial, found) is Verdict.STOP:
            return Verdict.STOP
        if is_last(trial):
            return Verdict.CONTINUE
    for stretch in course.stretches:
        if state.step < stretch.stop:
            verdict, state = _run_phase(trial, stretch, state)
            if verdict is Verdict.STOP:
                return verdict
            if trial.history and is_last(trial):
                break
    return Verdict.CONTINUE


def _run_phase(trial: Trial, stretch: Stretch, state: State) -> tuple[Verdict, State]:
    """One phase, on one engine; where that runs out of memory, on another with smaller micro-batches."""
    boundary = suffix.boundary(stretch.phase, trial.setting.blocks, state.weights)
    while True:
        micro_batch = trial.micro_batch(boundary)
        try:
            return _run_engine(trial, stretch, state, boundary, micro_batch)
        except TooLarge as too_large:
            state = too_large.state
            if micro_batch == 1:
                raise Infeasible(_shortage(trial, stretch)) from too_large
            trial.setting.micro_limits[boundary] = micro_batch // 2


def _run_engine(
    trial: Trial, stretch: Stretch, state: State, boundary: int, micro_batch: int
) -> tuple[Verdict, State]:
    """Steps, evaluations and proof of a phase on one engine."""
    training, team, blocks = trial.config.training, trial.team, trial.setting.blocks
    began = time.monotonic() - state.seconds
    module = suffix.build(stretch.phase, blocks, state.weights, dropout=training.dropout).to(team.device)
    if training.activation_checkpointing:
        suffix.recompute_activations(module)
    thawed = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    present = Weights(blocks, state.weights)
    before = {name: present[name] for name in thawed}
    groups = optim.groups(
        thawed,
        blocks=blocks,
        shapes={name: tensor.shape for name, tensor in before.items()},
        ages={name: slots.steps for name, slots in state.slots.items()},
        training=training,
    )
    dtype = compute_dtype(training.precision)
    prefix = Prefix(module=None if boundary < 0 else trial.setting.prefix(boundary, dtype, team.device))
    verdict = Verdict.CONTINUE

    with engine(
        module,
        groups=groups,
        weights=state.weights,
        slots=state.slots,
        training=training,
        team=team,
        loss_scale=state.loss_scale,
    ) as live:
        del module
        suffix.set_modes(live.module, stretch.phase, blocks)
        witness = Witness(live.module)
        losses: list[Tensor] = []
        factors: list[float] = []
        for step in range(state.step, stretch.stop):
            factor = optim.lr_factor(
                step, total_steps=trial.plan.total_steps, phase_start=stretch.start, training=training
            )
            try:
                losses.append(_step(trial, step, live, prefix, factor, micro_batch))
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if team.size > 1:
                    raise OutOfMemory(micro_batch, str(error)) from error
                raise TooLarge(_snapshot(state, live, step, time.monotonic() - began)) from error
            factors.append(factor)
            witness.settle()
            done = step + 1
            evaluates = done in trial.plan.evaluations
            if len(factors) == 1 or done % training.log_every == 0 or evaluates or done == stretch.stop:
                rates = [group.learning_rate * factor for group in groups]
                values = _report_progress(trial, stretch, done, losses, rates)
                for at, value in enumerate(values, done - len(values) + 1):
                    trial.losses.append(value)
                    if len(trial.losses) == PATIENCE_STEPS and not any(map(math.isfinite, trial.losses)):
                        raise Diverged(f"the training loss is {value} at step {at}")
                losses.clear()
            if evaluates:
                state = _snapshot(state, live, done, time.monotonic() - began)
                verdict = _evaluate(trial, stretch, state, live, prefix)
                if verdict is Verdict.STOP or is_last(trial):
                    break
                suffix.set_modes(live.module, stretch.phase, blocks)
        else:
            if state.step < stretch.stop:
                state = _snapshot(state, live, stretch.stop, time.monotonic() - began)
        broken = prove(
            phase=stretch.phase.name,
            frozen=live.frozen(),
            expected=Weights(blocks, state.weights),
            before=before,
            after=state.weights,
            with_gradient=set().union(*team.gather(witness.seen)),
            step_size=_step_sizes(groups, max(factors), witness, training),
            touched=set().union(*team.gather(trial.setting.touched())),
        )
        for finding in team.gather(broken):
            if finding is not None:
                raise BrokenProof(finding)
    return verdict, state


def _step(
    trial: Trial, step: int, live: Engine, prefix: Prefix, lr_factor: float, micro_batch: int
) -> Tensor:
    """One optimizer step on one global batch. Returns this rank's part of the batch's mean loss."""
    team, data, training = trial.team, trial.setting.data, trial.config.training
    batch = trial.batch(step)
    weight = float(len(batch))
    if trial.class_weights is not None:
        weight = float(trial.class_weights.cpu()[data.train.labels[batch]].sum())
    rows = batches.split(batch, data.train.lengths, team.size, micro_batch)
    total = torch.zeros((), device=team.device)
    for index, row in enumerate(rows):
        micro = row[team.rank]
        inputs, labels = tensors(
            data.train, micro.indices, data=data, cap=trial.setting.max_length, device=team.device
        )
        real = torch.from_numpy(micro.weights).to(team.device)
        torch.manual_seed(derive(trial.config.seed, "dropout", step, index, team.rank))
        losses = trial.setting.task.losses(
            live(**prefix(inputs)),
            labels,
            class_weights=trial.class_weights,
            label_smoothing=training.label_smoothing,
        )
        loss = (losses * real).sum() / weight
        # The engine averages gradients over the ranks, the batch's mean loss is a sum over them.
        live.backward(loss * team.size, last=index == len(rows) - 1)
        total += loss.detach()
    live.step(lr_factor)
    return total


def _step_sizes(
    groups: Sequence[optim.Group], lr_factor: float, witness: Witness, training: TrainingConfig
) -> dict[str, float]:
    """How far the largest step moved each thawed tensor, at least, as far as is known."""
    rates = {name: group.learning_rate * lr_factor for group in groups for name in group.names}
    if OPTIMIZERS[training.optimizer].normalises:
        return rates
    # Other micro-batches and ranks may have cancelled nearly all of what this one saw.
    return {name: rate * witness.largest.get(name, 0.0) * _UNCANCELLED for name, rate in rates.items()}


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed: torch has a type for it on a GPU, and only words on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _shortage(trial: Trial, stretch: Stretch) -> str:
    stretches = trial.plan.stretches
    bytes_needed = memory.needed(
        memory.shape_of(trial.setting.blocks),
        trial.config.training,
        stretch.phase,
        tokens=trial.setting.max_length,
        workers=trial.team.size,
        earlier=[other.phase for other in stretches[: stretches.index(stretch)]],
        device="cuda" if trial.team.device.type == "cuda" else "cpu",
    )
    return (
        f"phase {stretch.phase.name} does not fit in memory at a micro-batch of 1 example: "
        f"a worker needs about {bytes_needed / 1e6:,.0f} MB"
    )


def _report_progress(
    trial: Trial, stretch: Stretch, step: int, losses: list[Tensor], learning_rates: list[float]
) -> list[float]:
    """Report the mean loss of the last steps, and return each. The only place that waits for the device."""
    values: list[float] = trial.team.sum(torch.stack(losses)).tolist()
    if trial.team.leads:
        trial.reporter.progressed(
            Progress(
                step=step,
                examples=trial.plan.examples(step),
                epochs=step / trial.plan.steps_per_epoch,
                phase=stretch.phase.name,
                thawed=describe(stretch.phase, trial.setting.blocks.num_blocks),
                metrics={
                    "train/loss": sum(values) / len(values),
                    "train/learning_rate": max(learning_rates),
                    "train/learning_rate_lowest": min(learning_rates),
                    "train/thawed_blocks": len(stretch.phase.blocks),
                },
            )
        )
    return values


def _evaluate(trial: Trial, stretch: Stretch, state: State, live: Engine, prefix: Prefix) -> Verdict:
    """Evaluate, and write the checkpoint meanwhile; rank 0 reports and asks, all ranks obey."""
    setting, team = trial.setting, trial.team
    draft = checkpoint.Draft(
        checkpoint.path_of(trial.directory, state.step),
        state,
        rank=team.rank,
        ranks=team.size,
        token=team.broadcast(uuid.uuid4().hex[:8]),
    )
    metrics = evaluate(
        live,
        prefix,
        setting.data.validation,
        data=setting.data,
        task=setting.task,
        cap=setting.max_length,
        team=team,
    )
    trial.history.append(Told(step=state.step, metrics=metrics))
    files = {name: file for part in team.gather(draft.files()) for name, file in part.items()}
    saved = None
    if team.leads:
        saved = draft.commit(files, trial.identity, phase=stretch.phase.name, history=trial.history)
    return _report_evaluation(trial, saved)


def _report_evaluation(trial: Trial, saved: Checkpoint | None) -> Verdict:
    """Rank 0 reports and asks, all ranks obey."""
    verdict = None
    if trial.team.leads:
        assert saved is not None
        verdict = trial.reporter.evaluated(
            Evaluation(
                step=saved.state.step,
                examples=trial.plan.examples(saved.state.step),
                epochs=trial.plan.evaluations[saved.state.step],
                phase=saved.phase,
                metrics=saved.history[-1].metrics,
                checkpoint=str(saved.path),
                seconds=saved.state.seconds,
                last=is_last(trial),
            )
        )
    return Verdict(trial.team.broadcast(verdict))


def _snapshot(state: State, live: Engine, step: int, seconds: float) -> State:
    """The state after `step` steps: what trains now from the engine, the rest as it was."""
    return replace(
        state,
        step=step,
        weights={**state.weights, **live.weights()},
        slots={**state.slots, **live.slots()},
        loss_scale=live.loss_scale,
        seconds=seconds,
    )


def _outline(trial: Trial, resumed_step: int) -> Course:
    phases = tuple(
        PhaseOutline(
            name=stretch.phase.name,
            start_epoch=stretch.start / trial.plan.steps_per_epoch,
            thawed=describe(stretch.phase, trial.setting.blocks.num_blocks),
        )
        for stretch in trial.plan.stretches
    )
    return Course(phases=phases, resumed_step=resumed_step, data_fingerprint=trial.setting.data.fingerprint)
