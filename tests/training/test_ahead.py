"""The next batch is made while a step runs."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import MakeTrial
from tests.training.trials import run
from training import loop, sizes
from training.ahead import ahead
from training.batches import evaluation_batches
from training.config import UnfreezingConfig
from training.engine import Engine
from training.prefix import Feed
from training.workspace import Workspace

PATIENCE_S = 20.0


def test_one_ahead_and_no_more() -> None:
    made = [threading.Event() for _ in range(4)]

    def make(index: int) -> int:
        made[index].set()
        return index * index

    found = []
    for square in ahead(make, range(4)):
        index = len(found)
        assert made[min(index + 1, 3)].wait(PATIENCE_S)
        assert not any(event.is_set() for event in made[index + 2 :])
        found.append(square)
    assert found == [0, 1, 4, 9]


def test_an_error_is_raised_where_it_is_due() -> None:
    coming = ahead(lambda index: 1 // (2 - index), range(4))
    assert [next(coming), next(coming)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(coming)


def test_nothing_runs_once_it_is_closed() -> None:
    begun, ended = threading.Event(), threading.Event()

    def make(index: int) -> int:
        if index == 1:
            begun.set()
            ended.wait(0.2)
            ended.set()
        return index

    coming = ahead(make, range(3))
    assert next(coming) == 0
    assert begun.wait(PATIENCE_S)
    coming.close()
    assert ended.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


class Fetched:
    """Counts the batches of each split that have been fetched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        self._names: list[str] = []
        rows = Feed.rows

        def counted(feed: Feed, name: str, *others: Any) -> Any:
            made = rows(feed, name, *others)
            with self._changed:
                self._names.append(name)
                self._changed.notify()
            return made

        monkeypatch.setattr(Feed, "rows", counted)

    def reaches(self, name: str, count: int) -> bool:
        """Wait for so many of a split, for a while."""
        with self._changed:
            return self._changed.wait_for(lambda: self._names.count(name) >= count, PATIENCE_S)


@pytest.mark.parametrize("micro_batch_size", [2, "auto"])
@pytest.mark.parametrize("schedule", ["head", "full"])
def test_a_step_does_not_wait_for_its_batch(
    schedule: Any,
    micro_batch_size: Any,
    make_trial: MakeTrial,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the weights move, the first batch of the next step has been fetched."""
    unfreezing = UnfreezingConfig(schedule=schedule)
    config = make_trial(micro_batch_size=micro_batch_size, unfreezing=unfreezing)
    batch_size = config.training.batch_size
    steps = -(-len(workspace.open(config).data.train) // batch_size)
    pieces = 1 if micro_batch_size == "auto" else batch_size // micro_batch_size
    fetched, update = Fetched(monkeypatch), loop._update
    ready: list[bool] = []

    def checked(*args: Any) -> None:
        if len(ready) + 1 < steps:
            ready.append(fetched.reaches("train", (len(ready) + 1) * pieces + 1))
        update(*args)

    monkeypatch.setattr(loop, "_update", checked)
    run(config, workspace, tmp_path)
    assert ready == [True] * (steps - 1)


def test_an_evaluation_does_not_wait_for_its_batches(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one runs, the next is fetched."""
    monkeypatch.setitem(sizes.EVALUATION_TOKENS, "cpu", 64)
    config = make_trial(unfreezing=UnfreezingConfig(schedule="head"))
    batches = len(evaluation_batches(workspace.open(config).data.validation.lengths, 64))
    assert batches > 3
    fetched, evaluated = Fetched(monkeypatch), Engine.evaluated
    ready: list[bool] = []

    def checked(engine: Engine, **inputs: Any) -> Any:
        ready.append(fetched.reaches("validation", min(len(ready) + 2, batches)))
        return evaluated(engine, **inputs)

    monkeypatch.setattr(Engine, "evaluated", checked)
    run(config, workspace, tmp_path)
    assert ready == [True] * batches


def test_what_has_been_used_is_let_go() -> None:
    """A batch is not held while the next but one is made."""

    class Batch:
        pass

    made: list[weakref.ref[Batch]] = []

    def make(index: int) -> Batch:
        batch = Batch()
        made.append(weakref.ref(batch))
        return batch

    coming = ahead(make, range(3))
    next(coming)
    assert made[0]() is None
    coming.close()
