"""What a trial tells of itself, and the evaluation that it asks about. All ranks call these alike."""

from __future__ import annotations

import logging
import uuid

from training import checkpoint
from training.checkpoint import Checkpoint, State, Told
from training.draft import Draft
from training.evaluate import evaluate
from training.latency import costs
from training.opening import Opened
from training.plan import Stretch
from training.reporter import Course, Evaluation, PhaseOutline, Progress, Verdict
from training.schedules import describe
from training.trial import Diverged, Trial, Unsaved, is_last

log = logging.getLogger(__name__)

GRACE_S = 0.5
"""How long a verdict is waited for after an evaluation: most checkpoints are written by then, and a trial
that is to end takes no step for nothing."""


def report_course(trial: Trial, resumed_step: int) -> None:
    """Report what is known before the first step."""
    log.debug("restored at step %d", resumed_step)
    if trial.team.leads:
        phases = tuple(
            PhaseOutline(
                name=stretch.phase.name,
                start_epoch=stretch.start / trial.plan.steps_per_epoch,
                thawed=describe(stretch.phase, trial.setting.blocks.num_blocks),
            )
            for stretch in trial.plan.stretches
        )
        fingerprint = trial.setting.data.fingerprint
        trial.reporter.started(Course(phases=phases, resumed_step=resumed_step, data_fingerprint=fingerprint))


def report_progress(trial: Trial, stretch: Stretch, step: int, learning_rates: list[float]) -> Verdict:
    """Report the mean loss of the steps since the last report. It waits for the device.

    Returns:
        LEAVE on all ranks where the machine of one is about to go, else CONTINUE.

    Raises:
        Diverged: where too many losses in a row are not finite.
    """
    values = trial.losses.settle(trial.team)
    log.debug("step %d done", step)
    verdict: Verdict | None = None
    if trial.team.leads:
        verdict = trial.reporter.progressed(
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
    if (found := trial.losses.diverged) is not None:
        at, value = found
        raise Diverged(f"the training loss is {value} at step {at}")
    return Verdict(trial.team.broadcast(verdict or Verdict.CONTINUE))


def save(trial: Trial, stretch: Stretch, state: State) -> None:
    """Write a checkpoint between two evaluations, for another process to go on from. It is not told."""
    _commit(trial, Unsaved(draft=_draft(trial, state), phase=stretch.phase.name))
    trial.team.gather(None)  # nobody leaves before it counts


def _draft(trial: Trial, state: State) -> Draft:
    team = trial.team
    return Draft(
        checkpoint.path_of(trial.directory, state.step),
        state,
        rank=team.rank,
        ranks=team.size,
        token=team.broadcast(uuid.uuid4().hex[:8]),
        remote=trial.remote,
    )


def _commit(trial: Trial, unsaved: Unsaved) -> Checkpoint | None:
    """Make a checkpoint count once all ranks have written theirs of it. Returns it on rank 0."""
    parts = trial.team.gather(unsaved.draft.files())
    if not trial.team.leads:
        return None
    files = {name: file for part in parts for name, file in part.items()}
    return unsaved.draft.commit(files, trial.identity, phase=unsaved.phase, history=trial.history)


def report_evaluation(
    trial: Trial, stretch: Stretch, state: State, phase: Opened, *, batch_tokens: int
) -> Verdict:
    """Evaluate, and write the checkpoint meanwhile.

    Returns:
        what becomes of the trial; CONTINUE where the checkpoint takes longer: `settle` has the word then.
    """
    setting, team = trial.setting, trial.team
    draft = _draft(trial, state)
    try:
        metrics = evaluate(
            phase.engine,
            phase.feed,
            "validation",
            task=setting.task,
            team=team,
            batch_tokens=batch_tokens,
        )
        told = Told(step=state.step, metrics=metrics, costs=costs(trial, phase))
    except BaseException:
        draft.discard()
        raise
    trial.history.append(told)
    trial.unsaved.append(Unsaved(draft=draft, phase=stretch.phase.name))
    return settle(trial, wait=is_last(trial), within_s=GRACE_S)


def settle(trial: Trial, *, wait: bool, within_s: float = 0.0) -> Verdict:
    """Tell an evaluation whose checkpoint was still being written: it counts once that is durable.

    Args:
        wait: for the checkpoint, however long it takes.
        within_s: else for so many seconds; then training goes on, and this is called again.

    Returns:
        what becomes of the trial; CONTINUE where there is nothing to tell yet.
    """
    team = trial.team
    if not trial.unsaved:
        return Verdict.CONTINUE
    (unsaved,) = trial.unsaved
    if not wait and not all(team.gather(unsaved.draft.written(within_s))):
        return Verdict.CONTINUE
    saved = _commit(trial, unsaved)
    trial.unsaved.clear()
    if saved is not None:
        # Those between evaluations are known to nobody else, and have served.
        checkpoint.drop(trial.directory, trial.remote, keep=trial.plan.evaluations, before=saved.state.step)
    return report_saved(trial, saved)


def report_saved(trial: Trial, saved: Checkpoint | None) -> Verdict:
    """Report the evaluation that `saved` (on rank 0) holds, and ask what becomes of the trial."""
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
                checkpoint=saved.location,
                seconds=saved.state.seconds,
                last=is_last(trial),
                costs=saved.history[-1].costs,
            )
        )
    return Verdict(trial.team.broadcast(verdict))
