"""A sweep whose directory goes away in the middle and comes back: work goes on, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from search.records import TrialRecord
from search.study import Study
from tests.search import killable

Act = Callable[[], None]


def sweep(directory: Path, *, at: dict[int, Act], patience_s: float = 60.0) -> list[TrialRecord]:
    """A sweep of six trials; something happens at some of its evaluations."""
    count = itertools.count(1)
    return killable.sweep(
        directory,
        "stop",
        seed=2,
        trials=6,
        workers=2,
        patience_s=patience_s,
        on_evaluation=lambda: at.get(next(count), lambda: None)(),
    )


@pytest.mark.parametrize(
    ("leaves", "returns"), [(10, 60), (1, 40), (55, 56), (20, None)], ids=["long", "early", "once", "end"]
)
def test_a_directory_that_is_renamed_and_back(tmp_path: Path, leaves: int, returns: int | None) -> None:
    calm = sweep(tmp_path / "calm", at={})
    here, there = tmp_path / "here", tmp_path / "there"
    seen: list[int] = []

    def leave() -> None:
        here.rename(there)

    def come_back() -> None:
        seen.append(len(Study.read(there / "study.journal").trials()))
        there.rename(here)

    acts = {leaves: leave}
    if returns is None:  # the driver waits at its end, until it is back
        threading.Timer(3.0, come_back).start()
    else:
        acts[returns] = come_back
    stormy = sweep(here, at=acts)
    assert seen  # what was there meanwhile could be read
    assert stormy == calm
    assert Study.read(here / "study.journal").trials() == calm
    if returns is not None and returns - leaves > 20:
        assert seen[0] < len(calm)  # and it was not all of it


def test_one_that_does_not_come_back_ends_the_sweep_after_a_time(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    law = re.escape(f"{here}/study.journal cannot be read or written, for 1 s now: No such file or directory")
    with pytest.raises(OSError, match=law):
        sweep(here, at={10: lambda: here.rename(there) and None}, patience_s=1.0)
    there.rename(here)
    study = Study.read(here / "study.journal")
    assert sum(len(t.results) for t in study.trials()) == 9  # all from before
    assert sweep(here, at={}) == sweep(tmp_path / "calm", at={})


def test_others_who_wrote_meanwhile_are_heard(tmp_path: Path) -> None:
    """Such as optuna-dashboard, whose notes go into the same file."""
    here, there = tmp_path / "here", tmp_path / "there"

    def come_back() -> None:
        other = Study.read(there / "study.journal")
        other._study.set_user_attr("note", "from elsewhere")
        there.rename(here)

    trials = sweep(here, at={10: lambda: here.rename(there) and None, 30: come_back})
    assert trials == sweep(tmp_path / "calm", at={})
    read = Study.read(here / "study.journal")
    assert read.trials() == trials
    assert read._study.user_attrs["note"] == "from elsewhere"


def test_a_write_that_is_cut_short_is_not_doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a transaction: `write` takes a part, then none."""
    real = os.fsync
    failures = iter([False] * 10 + [True] * 5)

    def full(descriptor: int) -> None:
        if next(failures, False):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("search.journal.os.fsync", full)
    trials = sweep(tmp_path / "full", at={})
    monkeypatch.undo()
    assert trials == sweep(tmp_path / "calm", at={})
    assert Study.read(tmp_path / "full" / "study.journal").trials() == trials
