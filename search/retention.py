"""Which checkpoints a sweep may delete."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from search.records import Goal, Result, TrialRecord, score


def deletable(
    trials: Sequence[TrialRecord], keep: int, metric: str, goal: Goal, front: Collection[int] = ()
) -> set[str]:
    """The checkpoints that nobody needs any more.

    Kept are the best checkpoint of the top `keep` trials, whatever their state, and the best and the
    latest of every unfinished trial, which goes on from them. Equal trials rank by number. Values
    only get better, so what has been deleted would not be wanted again later.

    Args:
        front: trials that no other beats in all objectives, where there are several; their best stay as well.
    """
    assert keep >= 0, f"keep must be >= 0, got {keep}"
    trials = [t for t in trials if t.saved]
    best = {t.number: _best_saved(t, metric, goal) for t in trials}
    valued = [(number, result) for number, result in best.items() if result is not None]
    valued.sort(key=lambda item: (-score(item[1].metrics[metric], goal), item[0]))
    kept = {result.checkpoint for _, result in valued[:keep]}
    kept |= {result.checkpoint for number, result in valued if number in front}
    for trial in trials:
        if not trial.state.finished:
            saved = best[trial.number]
            kept |= {trial.checkpoint, None if saved is None else saved.checkpoint}
    named = {r.checkpoint for t in trials for r in t.saved if r.checkpoint is not None}
    return named - kept


def _best_saved(trial: TrialRecord, metric: str, goal: Goal) -> Result | None:
    """The best evaluation of those with a checkpoint; of equals the earliest."""
    saved = [r for r in trial.saved if score(r.metrics.get(metric), goal) > -float("inf")]
    return max(saved, key=lambda r: score(r.metrics[metric], goal), default=None)
