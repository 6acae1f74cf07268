"""A journal with a line that nobody can read: cut off, kept aside, and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.loading import load
from search.records import Result, TrialRecord, TrialState
from search.repair import repair
from search.study import Study
from search.sweep import create
from tests.cli import Thaw, caller, write_sweep
from tests.search import killable

Picks = Callable[[dict[str, Any]], bool]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("sound") / "sweep"
    killable.sweep(directory, "stop", 5)
    return (directory / "study.journal").read_bytes()


@pytest.fixture
def ledger(tmp_path: Path, sound: bytes) -> Path:
    path = tmp_path / "sweep" / "study.journal"
    path.parent.mkdir()
    path.write_bytes(sound)
    return path


def spoil(path: Path, which: Picks, with_: bytes = b"\0" * 40) -> int:
    """Overwrites the middle one of the lines that are picked; its index."""
    lines = path.read_bytes().split(b"\n")[:-1]
    picked = [at for at, line in enumerate(lines) if which(json.loads(line))]
    at = picked[len(picked) // 2]
    lines[at] = with_
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return at


def courses(trials: list[TrialRecord]) -> list[object]:
    """What trials are and what they measured."""
    return [(t.number, t.params, t.seed, [(r.epochs, r.metrics) for r in t.results]) for t in trials]


def test_a_sound_ledger_is_left_alone(ledger: Path, sound: bytes) -> None:
    assert repair(ledger) is None
    ledger.write_bytes(sound + b'{"op_code": 8, "tri')  # torn by a kill: nobody has read it
    assert repair(ledger) is None
    assert list(ledger.parent.iterdir()) == [ledger]


@pytest.mark.parametrize("garbage", [b"\0" * 40, b"[]", b'{"op_code": "x"}', b"\xff\xfe", b""])
def test_one_result_that_cannot_be_read_costs_no_more(ledger: Path, sound: bytes, garbage: bytes) -> None:
    before = Study.read(ledger).trials()

    def is_result(entry: dict[str, Any]) -> bool:
        return entry["op_code"] == 8 and str(entry.get("user_attr")).startswith("{'result:")

    at = spoil(ledger, is_result, garbage)
    damaged = ledger.read_bytes()
    with pytest.raises(ValueError, match=rf"line {at + 1} is not readable; `resume` cuts it off"):
        Study.read(ledger)
    lost = repair(ledger)
    assert lost is not None
    assert f"line {at + 1} could not be read and was cut off: what 1 of" in lost
    assert "kept as study.journal.broken-1" in lost
    assert (ledger.parent / "study.journal.broken-1").read_bytes() == damaged
    after = Study.read(ledger).trials()
    assert [t.params for t in after] == [t.params for t in before]
    missing = [len(b.results) - len(a.results) for a, b in zip(after, before, strict=True)]
    assert sorted(missing)[-2:] == [0, 1]
    assert repair(ledger) is None


def test_a_trial_that_cannot_be_read_takes_with_it_what_would_go_to_another(ledger: Path) -> None:
    before = Study.read(ledger).trials()
    at = spoil(ledger, lambda entry: entry["op_code"] == 4)
    lost = repair(ledger)
    assert lost is not None
    total = len((ledger.parent / "study.journal.broken-1").read_bytes().splitlines())
    assert f"and with it the {total - at - 1} lines after it" in lost
    after = Study.read(ledger).trials()
    assert 0 < len(after) < len(before)
    assert courses(after[:-1]) == courses(before[: len(after) - 1])
    # The sweep goes on, and ends as it would have.
    again = killable.sweep(ledger.parent, "stop", 5)
    assert again == before
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in again)


def test_a_second_backup_does_not_replace_the_first(ledger: Path) -> None:
    for number in (1, 2):
        spoil(ledger, lambda entry: entry["op_code"] == 7)
        assert f"broken-{number}" in str(repair(ledger))
    assert len(list(ledger.parent.glob("*.broken-*"))) == 2


def test_what_the_study_was_made_with_is_entered_again(ledger: Path) -> None:
    before = Study.read(ledger).trials()
    spoil(ledger, lambda entry: entry["op_code"] == 2 and "metric" in dict(entry["user_attr"]))
    assert repair(ledger) is not None
    assert killable.sweep(ledger.parent, "stop", 5) == before


def test_a_reader_refuses_it_and_resume_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    thaw: Thaw = caller(monkeypatch, capsys)
    storage = tmp_path / "runs"
    made = create(load(str(write_sweep(tmp_path)), []), storage)
    study = made.open()
    for number in range(4):
        study.ask()
        study.report(number, Result(epochs=1, metrics={"eval/accuracy": 0.5 + number / 10}))
        study.tell(number, TrialState.COMPLETE)
    at = spoil(
        made.ledger, lambda entry: any(key.startswith("result:") for key in entry.get("user_attr", {}))
    )
    damaged = made.ledger.read_bytes()
    refused = thaw("trials", "tiny", "--storage", storage)
    assert refused.code == 2
    assert f"study.journal: line {at + 1} is not readable; `resume` cuts it off" in refused.err
    assert made.ledger.read_bytes() == damaged
    resumed = thaw("resume", "tiny", "--storage", storage)  # with nothing left to train, so without Ray
    assert f"warning: {made.ledger}: line {at + 1} could not be read and was cut off" in resumed.err
    assert made.ledger.with_name("study.journal.broken-1").read_bytes() == damaged
    assert thaw("trials", "tiny", "--storage", storage).code == 0
