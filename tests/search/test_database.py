"""A ledger in a database: the same sweep, and no secret anywhere."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from search.database import Database, complaint
from search.life import SweepState
from search.loading import load, to_yaml
from search.records import TrialRecord, TrialState
from search.study import Study
from search.sweep import create, find, is_finished
from tests.cli import Thaw, caller, write_sweep
from tests.search import killable

SEED, TRIALS = 5, 5


def told(trials: list[TrialRecord]) -> list[TrialRecord]:
    return [replace(t, results=tuple(replace(r, checkpoint=None) for r in t.results)) for t in trials]


def sqlite(directory: Path) -> Database:
    (directory / "db").mkdir()
    return Database(url=f"sqlite:///{directory}/db/study.db", study="s-1", patience_s=60.0)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """An SQLite file, or a study of its own in the database that THAW_TEST_DATABASE names by its URL."""
    url = os.environ.get("THAW_TEST_DATABASE")
    return sqlite(tmp_path) if url is None else Database(url=url, study=uuid.uuid4().hex, patience_s=60.0)


def test_it_holds_what_a_journal_holds(tmp_path: Path, database: Database) -> None:
    expected = killable.sweep(tmp_path / "journal", "promote", SEED, trials=TRIALS)
    assert killable.sweep(tmp_path / "sweep", "promote", SEED, database, TRIALS) == expected
    study = Study.read(replace(database))
    assert study.trials() == expected
    assert study.name == "s"


def test_killed_and_taken_up_again(tmp_path: Path, database: Database) -> None:
    whole = killable.sweep(tmp_path / "whole", "stop", SEED, trials=TRIALS)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.search.killable"])
    kills = 0
    for count in (15, 40, 60):
        process = processes.Process(
            target=killable.sweep, args=(tmp_path / "sweep", "stop", SEED, database, TRIALS)
        )
        process.start()
        trained = tmp_path / "sweep" / "trained"
        while process.is_alive() and (not trained.exists() or trained.read_bytes().count(b"\n") < count):
            time.sleep(0.001)
        process.kill()
        process.join()
        kills += process.exitcode == -9
    assert kills == 3
    after = killable.sweep(tmp_path / "sweep", "stop", SEED, database, TRIALS)
    assert told(after) == told(whole)


def test_one_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    database = sqlite(tmp_path)
    calm = killable.sweep(tmp_path / "calm", "stop", SEED, trials=TRIALS)
    impatient = replace(database, url=f"{database.url}?timeout=0.1")
    trained = tmp_path / "sweep" / "trained"
    busy: list[str] = []

    def occupy() -> None:
        while not trained.exists() or trained.read_bytes().count(b"\n") < 40:
            time.sleep(0.005)
        with sqlite3.connect(tmp_path / "db" / "study.db", timeout=60, isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            busy.append("since")
            time.sleep(1.5)
            other.execute("ROLLBACK")

    thread = threading.Thread(target=occupy)
    thread.start()
    stormy = killable.sweep(tmp_path / "sweep", "stop", SEED, impatient, TRIALS)
    thread.join()
    assert busy
    assert stormy == calm
    study = Study.read(replace(impatient, patience_s=1.0))
    with sqlite3.connect(tmp_path / "db" / "study.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match=r"cannot be reached, for 1 s now \("):
            study.aim(9)
        other.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("sqlite:////data/study.db", None),
        ("postgresql://me@host/db", None),
        ("postgresql://me:${PASSWORD}@host/db", None),
        ("postgresql://me:hunter2@host/db", "must not hold a password"),
        ("postgresql://host/db?user=me&password=hunter2", "must not hold a password"),
        ("mysql://host/db?user=me&passwd=hunter2", "must not hold a password"),
        ("postgresql://host/db?sslpassword=hunter2", "must not hold a password"),
        ("postgresql://host/db?password=${PASSWORD}&sslmode=require", None),
        ("postgresql://me:x${PASSWORD}@host/db", "must not hold a password"),
        ("study.db", "must be a URL"),
        ("postgresql://[/db", "must be a URL"),
    ],
)
def test_urls(url: str, wrong: str | None) -> None:
    said = complaint(url)
    assert (said is None) == (wrong is None)
    assert (wrong or "") in (said or "")
    assert "hunter2" not in (said or "")


def test_a_password_may_have_any_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "p@ss:/w?rd#${HOME}%")
    monkeypatch.setenv("PLACE", "/data/a b.db")
    for text in ("postgresql://me:${PASSWORD}@host/db", "postgresql://me@host/db?password=${PASSWORD}"):
        url = make_url(Database(url=text, study="s")._resolved())
        assert (url.password or url.query.get("password")) == os.environ["PASSWORD"]
        assert (url.username, url.host, url.database) == ("me", "host", "db")
    assert Database(url="sqlite:///${PLACE}", study="s")._resolved() == "sqlite:////data/a b.db"


def test_a_password_comes_from_the_environment_and_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    thaw: Thaw = caller(monkeypatch, capsys)
    storage = tmp_path / "runs"
    file = write_sweep(tmp_path)
    outcome = thaw("run", file, "--storage", storage, "--set", "search.storage=postgresql://me:hunter2@h/d")
    assert outcome.code == 2
    assert outcome.err.startswith("error: search.storage: must not hold a password")
    assert "hunter2" not in outcome.err
    assert not storage.exists()

    monkeypatch.setenv("SECRET_PLACE", str(tmp_path / "secret.db"))
    url = "sqlite:///${SECRET_PLACE}"
    spec = load(str(file), [f"search.storage={url}"])
    made = create(spec, storage)
    study = made.open()
    study.tell(study.ask().number, TrialState.FAILED, "no luck")
    found = find("tiny", storage)
    assert len(found.read().trials()) == 1
    assert found.state() is SweepState.INTERRUPTED
    assert not is_finished(found)
    assert thaw("extend", "tiny", "--trials", "+1", "--storage", storage).code == 0
    assert found.target(found.read()) == 5
    assert url in to_yaml(found.spec)
    written = [path for path in storage.rglob("*") if path.is_file()]
    assert (tmp_path / "secret.db").exists()
    assert not (found.directory / "study.journal").exists()
    assert not any("secret.db" in path.read_text(errors="replace") for path in written)
    monkeypatch.delenv("SECRET_PLACE")
    assert "SECRET_PLACE is not set in the environment" in thaw("trials", "tiny", "--storage", storage).err
