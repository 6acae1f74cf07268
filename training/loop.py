"""`train`: one trial from its first step, or from a checkpoint, to its end. Reads top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from training import checkpoint, optim, suffix
from training.checkpoint import Identity, State
from training.config import TrialConfig
from training.engine import Engine, GradientOverflow
from training.gradients import gradients, prepared
from training.opening import opened
from training.optimizers import check
from training.plan import Stretch, plan
from training.probe import fitting
from training.proof import BrokenProof, Witness, prove, step_sizes
from training.reporter import Reporter, Verdict
from training.reports import report_course, report_evaluation, report_progress, report_saved, save, settle
from training.shortage import TooLarge, shortage, watched
from training.sizes import Sizes, key, smaller, tighter
from training.store import Place
from training.suffix import Weights
from training.team import Team
from training.transfer import release
from training.trial import (
    Diverged,
    Infeasible,
    Losses,
    OutOfMemory,
    Trial,
    class_weights,
    is_last,
)
from training.workspace import Workspace

log = logging.getLogger(__name__)


def train(
    config: TrialConfig,
    *,
    workspace: Workspace,
    reporter: Reporter,
    directory: Path,
    remote: Place | None = None,
    limits: Mapping[str, Sizes] | None = None,
) -> Verdict:
    """Train one trial, from its newest checkpoint if it has one. Every rank calls it alike.

    Args:
        directory: where its checkpoints are, seen by all ranks.
        remote: where they are instead, in an object store; `directory` is this rank's scratch then.
        limits: what is known of memory from elsewhere, by `training.sizes.key`.

    Returns:
        CONTINUE when it ran to its end, STOP when the reporter stopped it, LEAVE when it is to go on
        elsewhere, from the checkpoint just written.

    Raises:
        ValueError: where the configuration does not fit the model or the data.
        BrokenProof: where a phase did not train what its schedule says.
        Diverged: where the loss is no longer finite.
        Infeasible: where even a micro-batch of one example does not fit in memory.
        OutOfMemory: where something does not fit, and there are several workers.
    """
    check(config.training)
    team = workspace.team
    setting = team.agree(lambda: workspace.open(config))
    for at, known in (limits or {}).items():
        setting.limits[at] = tighter(known, setting.limits.get(at))
    course = plan(
        config.training,
        num_blocks=setting.blocks.num_blocks,
        num_examples=len(setting.data.train),
        seed=config.seed,
    )
    if team.leads and remote is None:
        checkpoint.clean(directory)
    belongs = checkpoint.identity(config, model=setting.fingerprint, data=setting.data.fingerprint)
    _check_same(belongs, team)
    found = checkpoint.newest(directory, belongs, remote, team)
    state = found.state if found else State(step=0, weights=setting.fresh_weights(config.seed))
    trial = Trial(
        config=config,
        identity=belongs,
        setting=setting,
        plan=course,
        team=team,
        reporter=reporter,
        directory=directory,
        remote=remote,
        history=list(found.history) if found else [],
        class_weights=class_weights(config, setting),
        losses=Losses(state.losses, state.step),
    )
    report_course(trial, state.step)
    if found and found.state.step in course.evaluations:
        # Its evaluation may not have reached anyone before the trial was cut off: it is told again.
        if report_saved(trial, found) is Verdict.STOP:
            return Verdict.STOP
        if is_last(trial):
            return Verdict.CONTINUE
    try:
        for stretch in course.stretches:
            if state.step < stretch.stop:
                verdict, state = _run_phase(trial, stretch, state)
                if verdict is not Verdict.CONTINUE:
                    return verdict
                if trial.history and is_last(trial):
                    break
    except Diverged:  # all ranks alike
        if settle(trial, wait=True) is Verdict.STOP:
            return Verdict.STOP
        raise
    return Verdict.CONTINUE


def _check_same(belongs: Identity, team: Team) -> None:
    """Check that all ranks have the same model and data: each has read them on its own machine."""
    first, *others = team.gather(belongs)
    for rank, other in enumerate(others, start=1):
        for part in ("model", "data"):
            if getattr(other, part) != getattr(first, part):
                raise ValueError(
                    f"{part}: worker {rank} has read another {part} than worker 0; "
                    f"give what all nodes see alike"
                )


def _run_phase(trial: Trial, stretch: Stretch, state: State) -> tuple[Verdict, State]:
    """One phase, on one engine; where that runs out of memory, on another with smaller batches."""
    setting, team = trial.setting, trial.team
    boundary = suffix.boundary(stretch.phase, setting.blocks, state.weights)
    at = key(trial.config.training, stretch.phase, boundary)
    released = False
    while True:
        sizes = None
        try:
            with watched("engine", team, state):
                sizes = fitting(trial, stretch.phase, state, at)
            return _run_engine(trial, stretch, state, sizes)
        except TooLarge as error:
            fewer = smaller(sizes, error.moment, longest=setting.max_length) if sizes else None
            again = error.moment == "engine" and not released and team.size == 1
            if fewer is None and not again:
                failure = OutOfMemory(at, None, shortage(trial, stretch))
                raise (failure if team.size > 1 else Infeasible(str(failure))) from None
            if team.size > 1:
                raise OutOfMemory(at, fewer, str(error)) from None
            if fewer is not None:
                setting.limits[at] = tighter(fewer, setting.limits.get(at))
            state = error.state or state
        trial.losses.rewind(state.step)
        # What the failure held went with it just now.
        release(team.device)
        released = True


def _run_engine(trial: Trial, stretch: Stretch, state: State, sizes: Sizes) -> tuple[Verdict, State]:
    """Steps, evaluations and proof of a phase on one engine."""
    training, team, blocks = trial.config.training, trial.team, trial.setting.blocks
    began, begun = time.monotonic() - state.seconds, state.step
    done, largest, verdict = begun, 0.0, Verdict.CONTINUE
    with ExitStack() as stack:
        with watched("engine", team, state):
            phase = stack.enter_context(opened(trial, stretch.phase, state))
        log.debug("engine of phase %s built", stretch.phase.name)
        live = phase.engine

        def snapshot() -> State:
            return _snapshot(trial, state, live, done, time.monotonic() - began)

        suffix.set_modes(live.module, stretch.phase, blocks)
        witness = Witness(live.module, live.loss_scale)
        steps = range(done, stretch.stop)
        coming = stack.enter_context(closing(prepared(trial, steps, phase, sizes.micro_batch)))
        while True:
            if trial.owes_evaluation(done):
                verdict = settle(trial, wait=True)
                if verdict is Verdict.STOP:
                    break
                state = snapshot()
                with watched("evaluation", team, state):
                    verdict = report_evaluation(
                        trial, stretch, state, phase, batch_tokens=sizes.evaluation_tokens
                    )
                if verdict is Verdict.STOP or is_last(trial):
                    break
                suffix.set_modes(live.module, stretch.phase, blocks)
            if done == stretch.stop:
                verdict = settle(trial, wait=True)
                break
            factor = optim.lr_factor(
                done, total_steps=trial.plan.total_steps, phase_start=stretch.start, training=training
            )
            with watched("step", team, snapshot):
                loss = gradients(trial, done, phase, coming)
            skipped = live.skipped_steps
            # Halfway through it some weights have moved: it is repeated from further back.
            with watched("update", team, state):
                _update(live, factor)
            done += 1
            trial.losses.add(done, loss)
            witness.settle()
            if live.skipped_steps == skipped:
                largest = max(largest, factor)
            if done in {begun + 1, stretch.stop, *trial.plan.evaluations} or done % training.log_every == 0:
                rates = [group.learning_rate * factor for group in phase.groups]
                verdict = report_progress(trial, stretch, done, rates)
                leaves = verdict is Verdict.LEAVE and not trial.owes_evaluation(done)
                told = settle(trial, wait=leaves)
                if told is Verdict.STOP:
                    verdict = told
                    break
                if leaves:
                    state = snapshot()
                    save(trial, stretch, state)
                    break
        if state.step < done:
            state = snapshot()
        broken = prove(
            phase=stretch.phase.name,
            frozen=live.frozen(),
            expected=Weights(blocks, state.weights),
            before=phase.before,
            after=state.weights,
            with_gradient=set().union(*team.gather(witness.seen)),
            step_size=step_sizes(phase.groups, largest, witness, training),
            touched=set().union(*team.gather(trial.setting.touched())),
        )
        for finding in team.gather(broken):
            if finding is not None:
                raise BrokenProof(finding)
    return verdict, state


def _update(live: Engine, lr_factor: float) -> None:
    try:
        live.step(lr_factor)
    except GradientOverflow as error:
        raise Diverged(str(error)) from error


def _snapshot(trial: Trial, state: State, live: Engine, step: int, seconds: float) -> State:
    """The state after `step` steps: what trains now from the engine, the rest as it was."""
    return replace(
        state,
        step=step,
        weights={**state.weights, **live.weights()},
        slots={**state.slots, **live.slots()},
        scaler=live.scaler,
        losses=trial.losses.tail,
        seconds=seconds,
    )
