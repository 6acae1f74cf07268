"""The next batch is made while a step runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import MakeTrial
from tests.training.trials import run
from training import loop
from training.ahead import ahead
from training.config import UnfreezingConfig
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


@pytest.mark.parametrize("micro_batch_size", [2, "auto"])
@pytest.mark.parametrize("schedule", ["top", "full"])
def test_a_step_does_not_wait_for_its_batch(
    schedule: str,
    micro_batch_size: Any,
    make_trial: MakeTrial,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the weights move, the first batch of the next step has been fetched."""
    changed = threading.Condition()
    fetched: list[str] = []
    missing: list[int] = []
    rows, update = Feed.rows, loop._update
    config = make_trial(
        epochs=1.0,
        micro_batch_size=micro_batch_size,
        unfreezing=UnfreezingConfig(schedule=schedule, depth=1 if schedule == "top" else None),  # type: ignore[arg-type]
    )
    setting = workspace.open(config)
    steps = -(-len(setting.data.train) // config.training.batch_size)
    pieces = 1 if micro_batch_size == "auto" else -(-config.training.batch_size // micro_batch_size)
    updates = 0

    def counted(feed: Feed, name: str, *others: Any) -> Any:
        made = rows(feed, name, *others)
        with changed:
            fetched.append(name)
            changed.notify()
        return made

    def checked(*args: Any) -> None:
        nonlocal updates
        updates += 1
        if updates < steps:
            with changed:
                wanted = updates * pieces + 1
                if not changed.wait_for(lambda: fetched.count("train") >= wanted, PATIENCE_S):
                    missing.append(updates)
        update(*args)

    monkeypatch.setattr(Feed, "rows", counted)
    monkeypatch.setattr(loop, "_update", checked)
    run(config, workspace, tmp_path)
    assert updates == steps
    assert not missing
