"""Trials that pause at a rung and are promoted, on real gangs: each sitting goes on from a checkpoint."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.schedulers.tune import forget_ended
from search.spec import SweepSpec
from search.study import TrialState
from search.sweep import Sweep

Make = Callable[..., SweepSpec]
Run = Callable[[SweepSpec, Path], Sweep]


def test_paused_trials_give_their_gang_away_and_go_on_later(
    make_spec: Make, run_sweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    alive = weakref.WeakSet[Any]()

    def forget(controller: Any) -> None:
        alive.update(controller._trials)
        forget_ended(controller)
        if len(alive) > 2:
            gc.collect()
        kept.append(len(alive))

    monkeypatch.setattr("search.schedulers.tune.forget_ended", forget)
    monkeypatch.setattr("search.schedulers.tune._REMEMBERED", 0)
    spec = make_spec(
        training={"epochs": 2, "evaluations_per_epoch": 2, "batch_size": 16},
        search={
            "metric": {"name": "eval/loss", "goal": "minimize"},
            "sampler": "random",
            "scheduler": {"type": "asha", "mode": "promote", "reduction_factor": 2},
            # Of two, whichever is better is promoted: the first when the second has been seen to be
            # worse, or the second at the next rung, where it is alone.
            "trials": 2,
            "seed": 1,
        },
    )
    made = run_sweep(spec, tmp_path)
    trials = made.read().trials()
    assert len(trials) == 2
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    promoted = [t for t in trials if any(r.decision == "promote" for r in t.rulings)]
    assert promoted
    for trial in trials:
        assert trial.phases  # however short it was
        if trial.state is TrialState.PRUNED:
            assert [r.decision for r in trial.rulings][-1] == "pause"
            assert trial.rulings[0].epochs == 0.5
        # Every evaluation once and in order, though the trial had several sittings.
        epochs = [r.epochs for r in trial.results]
        assert epochs == [0.5, 1.0, 1.5, 2.0][: len(epochs)]
        seconds = [r.seconds for r in trial.results]
        assert seconds == sorted(seconds)
    sittings = len(trials) + sum(r.decision == "promote" for t in trials for r in t.rulings)
    assert max(kept) <= 2 < sittings  # one that runs, one that waits for its gang
    events = [json.loads(line) for line in (made.directory / "metrics.jsonl").read_text().splitlines()]
    for trial in promoted:
        steps = [
            e["examples"]
            for e in events
            if e["trial"] == trial.number and e["kind"] == "log" and "train/loss" in e["metrics"]
        ]
        assert steps == sorted(set(steps))  # no step was taken twice
        finishes = [e["state"] for e in events if e["trial"] == trial.number and e["kind"] == "finish"]
        assert finishes[:1] == ["paused"]
        assert finishes[-1] == trial.state
