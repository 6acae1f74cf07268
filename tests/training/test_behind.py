"""Checkpoints are written behind the training, and count once they are durable."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.training.conftest import Crew, MakeTrial, Recorder, assert_same
from training import checkpoint, draft, loop, reports
from training.checkpoint import State
from training.config import TrialConfig
from training.loop import train
from training.reporter import Evaluation, Progress, Verdict
from training.team import Team
from training.trial import Diverged
from training.workspace import Workspace

WAIT_S = 60.0


class Release(Recorder):
    """Lets a checkpoint be written only when training is at a later step, and keeps the order of news.

    Args:
        at: the step.
    """

    def __init__(self, at: int, **others: Any) -> None:
        super().__init__(**others)
        self.at = at
        self.allowed = threading.Event()
        self.news: list[tuple[str, int]] = []

    def progressed(self, progress: Progress) -> Verdict | None:
        self.news.append(("trained", progress.step))
        if progress.step >= self.at:
            self.allowed.set()
        return super().progressed(progress)

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        self.news.append(("evaluated", evaluation.step))
        assert (Path(evaluation.checkpoint) / checkpoint.MANIFEST).exists()
        return super().evaluated(evaluation)


@contextmanager
def slow_store(allowed: threading.Event) -> Iterator[None]:
    """Files of checkpoints take until `allowed`; nobody waits for them after an evaluation."""
    write = draft.save_file

    def slow(tensors: Mapping[str, Tensor], file: Path) -> None:
        assert allowed.wait(WAIT_S), "training waits for the checkpoint"
        write(dict(tensors), file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft, "save_file", slow)
        patch.setattr(reports, "GRACE_S", 0.0)
        yield


def newest(config: TrialConfig, workspace: Workspace, directory: Path) -> State:
    setting = workspace.open(config)
    belongs = checkpoint.identity(config, model=setting.fingerprint, data=setting.data.fingerprint)
    found = checkpoint.newest(directory, belongs)
    assert found is not None
    return found.state


def test_training_goes_on_while_a_checkpoint_is_written(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    config = make_trial(epochs=3.0, log_every=1)
    calm = Recorder()
    train(config, workspace=workspace, reporter=calm, directory=tmp_path / "calm")
    told = Release(9)
    with slow_store(told.allowed):
        train(config, workspace=workspace, reporter=told, directory=tmp_path / "slow")
    assert told.news.index(("evaluated", 6)) > told.news.index(("trained", 9))
    assert told.news.index(("evaluated", 6)) < told.news.index(("evaluated", 12))
    assert told.news[-1] == ("evaluated", 18)
    assert (told.scores, told.losses) == (calm.scores, calm.losses)
    ends = [newest(config, workspace, tmp_path / name).weights for name in ("slow", "calm")]
    assert_same(*ends)


def test_a_verdict_that_comes_late_loses_the_steps_since(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    config = make_trial(epochs=3.0, log_every=1)
    calm = Recorder()
    train(config, workspace=workspace, reporter=calm, directory=tmp_path / "calm")
    told = Release(9, stop_at=1)
    with slow_store(told.allowed):
        verdict = train(config, workspace=workspace, reporter=told, directory=tmp_path / "slow")
    assert verdict is Verdict.STOP
    assert told.news[-1] == ("evaluated", 6)
    assert newest(config, workspace, tmp_path / "slow").step == 6
    # Taken up again it is the trial that it would have been.
    again = Recorder()
    train(config, workspace=workspace, reporter=again, directory=tmp_path / "slow")
    assert again.scores == calm.scores
    ends = [newest(config, workspace, tmp_path / name).weights for name in ("slow", "calm")]
    assert_same(*ends)


def test_what_a_trial_has_found_counts_though_it_diverges_meanwhile(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_trial(epochs=3.0, log_every=1)
    gradients = loop.gradients

    def broken(trial: Any, step: int, *others: Any) -> Tensor:
        return gradients(trial, step, *others) * (float("nan") if step >= 8 else 1.0)

    monkeypatch.setattr(loop, "gradients", broken)
    told = Release(11)  # the third of three in a row: told before it is found
    with slow_store(told.allowed), pytest.raises(Diverged):
        train(config, workspace=workspace, reporter=told, directory=tmp_path)
    assert told.news[-1] == ("evaluated", 6)


class Flag(threading.Event):
    """An event for several processes: a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def set(self) -> None:
        self.path.touch()

    def wait(self, timeout: float | None = None) -> bool:
        until = time.monotonic() + (timeout or 0.0)
        while not self.path.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return self.path.exists()


def slow_there(team: Team, config: TrialConfig, directory: Path) -> tuple[list[tuple[str, int]], Verdict]:
    """Worker 1's files take until worker 0 is at a later step."""
    told = Release(9)
    told.allowed = Flag(directory.with_name("allowed"))
    written = threading.Event()
    written.set()
    with slow_store(told.allowed if team.rank == 1 else written):
        verdict = train(config, workspace=Workspace(team), reporter=told, directory=directory)
    return told.news, verdict


def test_all_workers_train_on_while_one_writes(make_trial: MakeTrial, tmp_path: Path, pair: Crew) -> None:
    config = make_trial(epochs=3.0, log_every=1)
    (news, verdict), (silence, other) = pair.run(slow_there, config, tmp_path / "trial")
    assert (verdict, other, silence) == (Verdict.CONTINUE, Verdict.CONTINUE, [])
    assert [step for kind, step in news if kind == "evaluated"] == [6, 12, 18]
    assert news.index(("evaluated", 6)) > news.index(("trained", 9))
