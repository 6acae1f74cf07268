"""A trial that is told to leave: a checkpoint first, and on from there elsewhere, no step twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.conftest import Crew, MakeTrial, Recorder, assert_same, plain
from tests.training.trials import GROWING, run
from training.config import TrialConfig
from training.loop import train
from training.reporter import Verdict
from training.team import Team
from training.workspace import Workspace


def steps(path: Path) -> list[int]:
    return sorted(int(each.name.removeprefix("step-")) for each in path.glob("step-*"))


@pytest.mark.parametrize("log_every", [1, 5])
def test_left_and_taken_up_is_the_same_trial(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, log_every: int
) -> None:
    """Left in the middle of a phase, at a phase's end and just before an evaluation, one after the other."""
    config = plain(make_trial(epochs=1.5, unfreezing=GROWING, log_every=log_every))
    expected, told = run(config, workspace, tmp_path / "calm")
    evaluated = [step for step, _ in told.scores]
    left: list[int] = []
    losses: list[tuple[int, float]] = []
    scores: list[tuple[int, dict[str, float]]] = []
    verdict = Verdict.LEAVE
    at = 2
    while verdict is Verdict.LEAVE:
        there = Recorder(leave_at=at)
        verdict = train(config, workspace=workspace, reporter=there, directory=tmp_path / "left")
        assert there.courses[0].resumed_step == (left[-1] if left else 0)
        losses += there.losses
        scores += there.scores
        if verdict is Verdict.LEAVE:
            left.append(steps(tmp_path / "left")[-1])
            at = left[-1] + 3
    assert len(left) >= 2
    assert not set(left) & set(evaluated)
    assert [step for step, _ in scores] == sorted({step for step, _ in scores})
    assert scores == told.scores
    assert [step for step, _ in losses] == sorted({step for step, _ in losses})  # no step was taken twice
    # What was written on leaving has served, and is gone; those of evaluations stay.
    assert steps(tmp_path / "left") == evaluated
    state, _ = run(config, workspace, tmp_path / "left")
    assert_same(state.weights, expected.weights)


def leave_there(team: Team, config: TrialConfig, directory: Path, at: int) -> tuple[str, list[int]]:
    told = Recorder(leave_at=at)
    verdict = train(config, workspace=Workspace(team), reporter=told, directory=directory)
    return str(verdict), [step for step, _ in told.losses]


def test_two_workers_leave_together(make_trial: MakeTrial, pair: Crew, tmp_path: Path) -> None:
    config = plain(make_trial(epochs=1.5, unfreezing=GROWING, log_every=1))
    verdicts = [verdict for verdict, _ in pair.run(leave_there, config, tmp_path / "pair", 2)]
    assert verdicts == ["leave", "leave"]
    assert steps(tmp_path / "pair") == [2]
    again = pair.run(leave_there, config, tmp_path / "pair", 10**6)
    assert [verdict for verdict, _ in again] == ["continue", "continue"]
    assert min(again[0][1]) == 3
