"""The file of a ledger: whole transactions, and what a crash may leave of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.journal import Journal
from search.study import Study
from tests.search.ledgers import opened, result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "study.journal"


def test_a_torn_line_is_cut_off(path: Path) -> None:
    study = opened(path)
    study.ask()
    whole = study.trials()
    with path.open("ab") as file:
        file.write(b'{"op_code": 7, "trial_id": 0, "st')
    assert Study.read(path).trials() == whole
    again = opened(path)
    assert again.trials() == whole
    again.report(0, result(1.0, 0.5))
    assert Study.read(path).trial(0).epochs == 1.0
    assert study.trial(0).epochs == 1.0, "a reader that was open all the while goes on as well"


def test_a_line_that_is_no_json_is_named(path: Path) -> None:
    opened(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\x00\x00\n", *lines[1:]]))
    with pytest.raises(ValueError, match=r"study\.journal: line 2 is not readable"):
        Study.read(path)


def test_a_drawing_that_was_torn_never_was(path: Path) -> None:
    study = opened(path)
    study.ask()
    drawn = path.read_bytes()
    second = study.ask()
    lines = path.read_bytes()[len(drawn) :].splitlines(keepends=True)
    assert len(lines) == 1  # a trial is one entry
    path.write_bytes(drawn + lines[0][: len(lines[0]) // 2])
    again = opened(path)
    assert [t.number for t in again.unfinished()] == [0]
    assert again.ask() == second


def test_a_transaction_is_one_write(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    journal, reader = Journal(path), Journal(path)
    with journal.transaction():
        journal.append_logs([{"op_code": 0}])
        journal.append_logs([{"op_code": 1}])
        assert list(journal.read_logs(0)) == [{"op_code": 0}, {"op_code": 1}]
        assert list(journal.read_logs(1)) == [{"op_code": 1}]
        assert list(reader.read_logs(0)) == []
    assert list(reader.read_logs(1)) == [{"op_code": 1}]

    def interrupted() -> None:
        with journal.transaction():
            journal.append_logs([{"op_code": 2}])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    journal.append_logs([{"op_code": 3}])
    assert list(reader.read_logs(2)) == list(journal.read_logs(2)) == [{"op_code": 3}]
