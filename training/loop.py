"""`train`: one trial from its first step, or from a checkpoint, to its end. Reads top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import batches, checkpoint, optim, suffix
from training.checkpoint import Checkpoint, State
from training.config import TrialConfig
from training.engine import Engine, compute_dtype, engine
from training.evaluate import evaluate, tensors
from training.plan import Plan, Stretch, plan
from training.prefix import Prefix
from training.proof import BrokenProof, Witness, prove
from training.reporter import Course, Evaluation, PhaseOutline, Progress, Reporter, Verdict
from training.rng import derive
from training.schedules import describe
from training.suffix import Weights
from training.team import Team
from training.workspace import Setting, Workspace

_MICRO_BATCH = {"cpu": 32, "cuda": 64}


class Diverged(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """What stays the same from the first step to the last."""

    config: TrialConfig
    setting: Setting
    plan: Plan
    team: Team
    reporter: Reporter
    directory: Path
    _epochs: dict[int, list[np.ndarray]] = field(default_factory=dict)

    @property
    def identity(self) -> checkpoint.Identity:
        """What the trial's checkpoints belong to."""
        setting = self.setting
        return checkpoint.identity(self.config, model=setting.fingerprint, data=setting.data.fingerprint)

    def batch(self, step: int) -> np.ndarray:
        """The global batch of a step, as indices: a pure function of seed and step."""
        epoch, index = divmod(step, self.plan.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = batches.epoch_batches(
                self.setting.data.train.lengths,
                self.config.training.batch_size,
                derive(self.config.seed, "batches"),
                epoch,
            )
        return self._epochs[epoch][index]


def train(config: TrialConfig, *, workspace: Workspace, reporter: Reporter, directory: Path) -> Verdict:
    """Train one trial, from its newest checkpoint if it has one. Every rank calls it alike.

    Args:
        directory: where its checkpoints are, seen by all ranks.

    Returns:
        CONTINUE when it ran to its end, STOP when the reporter stopped it.

    Raises:
        ValueError: where the configuration does not fit the model or the data.
        BrokenProof: where a phase did not train what its schedule says.
        Diverged: where the loss is no longer finite.
    """
    setting = workspace.open(config)
    course = plan(
        config.training,
        num_blocks=setting.blocks.num_blocks,
        num_examples=len(setting.data.train),
        seed=config.seed,
    )
    trial = _Trial(
        config=config,
        setting=setting,
        plan=course,
        team=workspace.team,
        reporter=reporter,
        directory=directory,
    )
    found = checkpoint.newest(directory, trial.identity)
    state = found.state if found else State(step=0, weights=setting.fresh_weights(config.seed))
    if trial.team.leads:
        reporter.started(_outline(trial, state.step))
    # Its evaluation may not have reached anyone before the trial was cut off: it is told again.
    if found and _report_evaluation(trial, found) is Verdict.STOP:
        return Verdict.STOP
    for stretch in course.stretches:
        if state.step < stretch.stop:
            verdict, state = _run_phase(trial, stretch, state)
            if verdict is Verdict.STOP:
                return verdict
    return Verdict.CONTINUE


def _run_phase(trial: _Trial, stretch: Stretch, state: State) -> tuple[Verdict, State]:
    """One phase on one engine: its steps, its evaluations, its proof."""
    training, team, blocks = trial.config.training, trial.team, trial.setting.blocks
    began = time.monotonic() - state.seconds
    module = suffix.build(stretch.phase, blocks, state.weights, dropout=training.dropout).to(team.device)
    thawed = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    present = Weights(blocks, state.weights)
    before = {name: present[name] for name in thawed}
    groups = optim.groups(
        thawed,
        blocks=blocks,
        shapes={name: tensor.shape for name, tensor in before.items()},
        ages={name: moment.steps for name, moment in state.moments.items()},
        training=training,
    )
    boundary = suffix.boundary(stretch.phase, blocks, state.weights)
    dtype = compute_dtype(training.precision)
    frozen = None if boundary < 0 else trial.setting.prefix(boundary, dtype, team.device)
    prefix = Prefix(module=frozen)
    verdict = Verdict.CONTINUE

    with engine(
        module,
        groups=groups,
        weights=state.weights,
        moments=state.moments,
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
            factors.append(
                optim.lr_factor(
                    step,
                    total_steps=trial.plan.total_steps,
                    warmup_ratio=training.warmup_ratio,
                    schedule=training.lr_schedule,
                )
            )
            losses.append(_step(trial, step, live, prefix, factors[-1]))
            witness.settle()
            done = step + 1
            evaluates = done in trial.plan.evaluations
            if len(factors) == 1 or done % training.log_every == 0 or evaluates or done == stretch.stop:
                _report_progress(
                    trial, stretch, done, losses, [group.learning_rate * factors[-1] for group in groups]
                )
                losses = []
            if evaluates:
                state = _snapshot(state, live, done, time.monotonic() - began)
                verdict = _evaluate(trial, stretch, state, live, prefix)
                if verdict is Verdict.STOP:
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
            step_size={name: group.learning_rate * max(factors) for group in groups for name in group.names},
            touched=set().union(*team.gather(trial.setting.touched())),
        )
        for finding in team.gather(broken):
            if finding is not None:
                raise BrokenProof(finding)
    return verdict, state


def _step(trial: _Trial, step: int, live: Engine, prefix: Prefix, lr_factor: float) -> Tensor:
    """One optimizer step on one global batch. Returns this rank's part of the batch's mean loss."""
    team, data = trial.team, trial.setting.data
    batch = trial.batch(step)
    size = trial.config.training.micro_batch_size
    micro_size = _MICRO_BATCH[team.device.type] if size == "auto" else size
    rows = batches.split(batch, data.train.lengths, team.size, micro_size)
    total = torch.zeros((), device=team.device)
    for index, row in enumerate(rows):
        micro = row[team.rank]
        inputs, labels = tensors(
            data.train, micro.indices, data=data, cap=trial.setting.max_length, device=team.device
        )
        weights = torch.from_numpy(micro.weights).to(team.device)
        torch.manual_seed(derive(trial.config.seed, "dropout", step, index, team.rank))
        losses = trial.setting.task.losses(live(**prefix(inputs)), labels)
        loss = (losses * weights).sum() / len(batch)
        # The engine averages gradients over the ranks, the batch's mean loss is a sum over them.
        live.backward(loss * team.size, last=index == len(rows) - 1)
        total += loss.detach()
    live.step(lr_factor)
    return total


def _report_progress(
    trial: _Trial, stretch: Stretch, step: int, losses: list[Tensor], learning_rates: list[float]
) -> None:
    """Report the mean loss of the last steps. The only place that waits for the device."""
    loss = float(trial.team.sum(torch.stack(losses).mean()))
    if trial.team.leads:
        trial.reporter.progressed(
            Progress(
                step=step,
                examples=trial.plan.examples(step),
                epochs=step / trial.plan.steps_per_epoch,
                phase=stretch.phase.name,
                thawed=describe(stretch.phase, trial.setting.blocks.num_blocks),
                metrics={
                    "train/loss": loss,
                    "train/learning_rate": max(learning_rates),
                    "train/learning_rate_lowest": min(learning_rates),
                    "train/thawed_blocks": len(stretch.phase.blocks),
                },
            )
        )
    if not math.isfinite(loss):
        raise Diverged(f"diverged: the training loss is {loss} at step {step}")


def _evaluate(trial: _Trial, stretch: Stretch, state: State, live: Engine, prefix: Prefix) -> Verdict:
    """Evaluate and checkpoint; rank 0 reports and asks, all ranks obey."""
    setting, team = trial.setting, trial.team
    metrics = evaluate(
        live,
        prefix,
        setting.data.validation,
        data=setting.data,
        task=setting.task,
        cap=setting.max_length,
        team=team,
    )
    saved = Checkpoint(
        path=checkpoint.path_of(trial.directory, state.step),
        state=state,
        phase=stretch.phase.name,
        metrics=metrics,
    )
    if team.leads:
        checkpoint.save(saved, trial.identity)
    return _report_evaluation(trial, saved)


def _report_evaluation(trial: _Trial, saved: Checkpoint) -> Verdict:
    """Rank 0 reports and asks, all ranks obey."""
    verdict = None
    if trial.team.leads:
        verdict = trial.reporter.evaluated(
            Evaluation(
                step=saved.state.step,
                examples=trial.plan.examples(saved.state.step),
                epochs=trial.plan.evaluations[saved.state.step],
                phase=saved.phase,
                metrics=saved.metrics,
                checkpoint=str(saved.path),
                seconds=saved.state.seconds,
            )
        )
    return Verdict(trial.team.broadcast(verdict))


def _snapshot(state: State, live: Engine, step: int, seconds: float) -> State:
    """The state after `step` steps: what trains now from the engine, the rest as it was."""
    return replace(
        state,
        step=step,
        weights={**state.weights, **live.weights()},
        moments={**state.moments, **live.moments()},
        loss_scale=live.loss_scale,
        seconds=seconds,
    )


def _outline(trial: _Trial, resumed_step: int) -> Course:
    phases = tuple(
        PhaseOutline(
            name=stretch.phase.name,
            start_epoch=stretch.start / trial.plan.steps_per_epoch,
            thawed=describe(stretch.phase, trial.setting.blocks.num_blocks),
        )
        for stretch in trial.plan.stretches
    )
    return Course(phases=phases, resumed_step=resumed_step, data_fingerprint=trial.setting.data.fingerprint)
