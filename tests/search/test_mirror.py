"""Sweeps in a real S3 server: one writer, whole transactions, checksums, and another machine that goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from search import mirror
from search import sweep as sweeps
from search.commands import watching
from search.delivery import obey_all
from search.inbox import Inbox
from search.life import Wanted
from search.mirror import files, journal, lease, open_storage, places
from search.mirror.lease import Lease, LeaseLost
from search.preflight import check_writable
from search.presence import Presence
from search.records import Result, TrialState
from search.results import status
from search.spec import SweepSpec, parse
from search.trackers import JsonlTracker, Run
from tests.conftest import REPOSITORY
from tests.object_store import ObjectStore
from training.checksums import DamagedFile
from training.store import Place, StorageError

S3 = tuple[ObjectStore, str]
METRIC = "eval/accuracy"


@pytest.fixture
def spec() -> SweepSpec:
    return parse(
        {
            "name": "small",
            "model": {"name": "m"},
            "data": {"train": "t.jsonl", "validation": "v.jsonl"},
            "parameters": {"learning_rate": {"min": 0.001, "max": 0.1}},
            "search": {"metric": {"name": METRIC, "goal": "maximize"}, "sampler": "random", "trials": 4},
        }
    )


def claimed(directory: Path) -> bool:
    """Whether somebody writes to a sweep, or did until moments ago."""
    place = mirror.place_of(directory)
    assert place is not None
    return lease.held(place) is not None


def another_machine() -> None:
    """Forgets all that this process knows of the store; leases stay as they are there."""
    places._mirrors.clear()
    files._known.clear()
    journal._journals.clear()
    for held in lease.leases.values():
        held._over.set()  # a dead driver renews nothing
    lease.leases.clear()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.4)
    monkeypatch.setattr(lease, "LEASE_S", 2.0)
    monkeypatch.setattr(lease, "SETTLE_S", 0.1)


def test_another_machine_goes_on_where_a_dead_driver_ended(s3: S3, spec: SweepSpec) -> None:
    server, uri = s3
    made = sweeps.create(spec, open_storage(uri))
    study = made.open()
    server.requests.clear()
    first = study.ask()
    assert len([m for m, path in server.requests if m == "PUT" and "study.journal" in path]) == 1
    study.report(first.number, Result(epochs=1.0, metrics={METRIC: 0.5}, checkpoint=f"{uri}/x", seconds=1.0))
    second = study.ask()
    study.tell(first.number, TrialState.COMPLETE)
    before = [(t.number, t.state, t.params, t.seed) for t in study.trials()]

    another_machine()  # the driver is dead, and this machine has never seen the sweep
    storage = open_storage(uri)
    found = sweeps.find("small", storage)
    assert found.directory != made.directory
    assert found.spec == made.spec
    assert [(t.number, t.state, t.params, t.seed) for t in found.read().trials()] == before
    again = sweeps.create(spec, storage).open()
    again.tell(second.number, TrialState.FAILED, "told by another")
    assert again.ask().number == 2
    mirror.release(found.directory)

    another_machine()
    states = [t.state for t in sweeps.find("small", open_storage(uri)).read().trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAILED, TrialState.RUNNING]
    with pytest.raises(ValueError, match=f"there is no sweep 'smal' in {uri}; did you mean small"):
        sweeps.find("smal", open_storage(uri))


def test_a_store_without_sweeps_is_named_as_it_was_given(s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    _, uri = s3
    watching.list_(uri)
    assert capsys.readouterr().out == f"there is no sweep in {uri}; start one with `run`\n"


def test_a_user_is_told_of_the_store_and_not_of_the_mirror(s3: S3, spec: SweepSpec) -> None:
    _, uri = s3
    made = sweeps.create(spec, open_storage(uri))
    assert status.of(made).document()["directory"] == f"{uri}/small"
    tracker = JsonlTracker()
    tracker.start(Run(sweep="small", sweep_id="1", trial=0, directory=made.directory, config={}))
    tracker.close(1.0)
    assert tracker.locations() == [f"{uri}/small/metrics.jsonl"]
    with made.ledger.open("ab") as file:
        file.write(b"{\n")
    lost = made.repair()
    assert lost is not None
    assert lost.startswith(f"{uri}/small/study.journal: line ")


def test_google_cloud_storage_is_a_store_as_well(gs: str, spec: SweepSpec) -> None:
    made = sweeps.create(spec, open_storage(gs))
    asked = made.open().ask()
    another_machine()
    found = sweeps.find("small", open_storage(gs))
    assert [t.params for t in found.read().trials()] == [asked.params]
    assert sweeps.names(open_storage(gs)) == ["small"]
    again = sweeps.create(spec, open_storage(gs))
    again.open().tell(0, TrialState.FAILED, "told by another")
    mirror.release(again.directory)
    another_machine()
    assert sweeps.find("small", open_storage(gs)).read().trial(0).state is TrialState.FAILED


def test_there_is_one_writer(s3: S3, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    _, uri = s3
    made = sweeps.create(spec, open_storage(uri))
    study = made.open()
    ours = lease.leases[made.directory]
    place = mirror.place_of(made.directory)
    assert place is not None
    other = Lease(place)
    with pytest.raises(ValueError, match="is at work already"):
        other.acquire()
    study.ask()
    ours._over.set()  # as if it hung: nothing is renewed
    monkeypatch.setattr(lease, "dead", lambda holder: False)
    began = time.monotonic()
    other.acquire()
    assert time.monotonic() - began >= lease.LEASE_S  # not before it has run out
    ours._over.clear()
    time.sleep(lease.LEASE_S)
    with pytest.raises(OSError, match="another driver works on this sweep now"):
        study.ask()
    assert len(sweeps.find("small", open_storage(uri)).read().trials()) == 1
    with pytest.raises(LeaseLost):
        ours.check()
    mirror.release(made.directory)
    assert claimed(made.directory)  # what another holds is not given back
    other.release()
    assert not claimed(made.directory)


def test_a_dead_holder_on_this_machine_loses_its_lease_at_once(s3: S3) -> None:
    _, uri = s3
    place = Place.parse(uri)
    code = (
        "import sys; from search.mirror.lease import Lease; from training.store import Place;"
        "Lease(Place(sys.argv[1])).acquire(); import os; os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, uri], cwd=REPOSITORY, check=False)
    assert lease.held(place) is not None
    began = time.monotonic()
    taken = Lease(place)
    taken.acquire()
    assert time.monotonic() - began < lease.LEASE_S
    taken.release()
    assert lease.held(place) is None


def test_the_mirror_of_a_killed_process_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f"thaw-mirror-{ended.pid}-x" / "sweep").mkdir(parents=True)
    (tmp_path / "thaw-mirror-1-x").mkdir()  # of one that lives
    root = open_storage("s3://bucket/of-nobody")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["thaw-mirror-1-x", root.name])
    places._mirrors.pop(root)


def test_journal_pieces(s3: S3, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    _, uri = s3
    monkeypatch.setattr(journal, "_PIECE_BYTES", 2000)
    made = sweeps.create(spec, open_storage(uri))
    study = made.open()
    for _ in range(4):
        number = study.ask().number
        study.report(number, Result(epochs=1.0, metrics={METRIC: 0.5}, checkpoint=None, seconds=1.0))
        study.tell(number, TrialState.COMPLETE)
    pieces = Place.parse(f"{uri}/small/study.journal")
    assert len(pieces.children()) > 2
    another_machine()
    found = sweeps.find("small", open_storage(uri))
    assert found.ledger.read_bytes() == made.ledger.read_bytes()
    assert len(found.read().trials()) == 4
    name = pieces.children()[1]
    data = (pieces / name).read()
    (pieces / name).write(data.replace(b"0.5", b"0.9"))
    another_machine()
    with pytest.raises(DamagedFile, match=f"study.journal/{name}: a piece of the journal is missing or was"):
        sweeps.find("small", open_storage(uri))
    (pieces / name).remove()
    with pytest.raises(DamagedFile, match="is missing or was altered"):
        sweeps.find("small", open_storage(uri))


@pytest.mark.parametrize("what", ["the old size", "gone"])
def test_a_journal_that_is_written_while_it_is_read(
    s3: S3, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    _, uri = s3
    sweeps.create(spec, open_storage(uri)).open().ask()
    another_machine()
    read, cut = Place.read, list[Place]()

    def meanwhile(place: Place) -> bytes:
        data = read(place)
        if "/study.journal/" not in str(place) or len(cut) == 2:
            return data
        cut.append(place)
        if what == "gone":
            raise FileNotFoundError(str(place))
        return data[:-10]

    monkeypatch.setattr(Place, "read", meanwhile)
    assert len(sweeps.find("small", open_storage(uri)).read().trials()) == 1
    assert len(cut) == 2


def test_a_store_that_is_away_for_a_while_holds_up_but_loses_nothing(s3: S3, spec: SweepSpec) -> None:
    server, uri = s3
    made = sweeps.create(spec, open_storage(uri))
    study = made.open()
    server.fault = lambda method, path: "503"
    threading.Timer(2.0, partial(setattr, server, "fault", None)).start()
    asked = study.ask()
    another_machine()
    assert [t.params for t in sweeps.find("small", open_storage(uri)).read().trials()] == [asked.params]


def test_a_store_that_cannot_be_written_is_said_at_once(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    server, uri = s3
    check_writable(open_storage(uri) / "x")
    assert Place.parse(uri).files() == {}
    with pytest.raises(ValueError, match=r"--storage: s3://no-such-bucket/x.*cannot write"):
        check_writable(open_storage("s3://no-such-bucket/x") / "y")
    monkeypatch.setenv("THAW_STORAGE_PATIENCE_S", "1")
    server.fault = lambda method, path: "reset"
    with pytest.raises(ValueError, match=r"--storage: .*\(asked for 1 s\)"):
        check_writable(open_storage(uri) / "y")
    with pytest.raises(StorageError):
        mirror.names(open_storage(uri))


def test_another_machine_steers_a_sweep_through_the_store(s3: S3, spec: SweepSpec) -> None:
    _, uri = s3
    made = sweeps.create(spec, open_storage(uri))
    made.open().ask()
    command = [sys.executable, str(REPOSITORY / "launch.py"), "pause", "small", "--storage", uri]

    def pause() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    inbox, presence = Inbox(made.directory), Presence(made.directory)
    with presence.claimed():
        there = pause()
        while not inbox.commands():
            assert there.poll() is None, there.communicate()
            time.sleep(0.1)
        assert mirror.place_of(made.directory) is not None
        obey_all(made, inbox)
        output, _ = there.communicate(timeout=60)
        assert there.returncode == 0, output
        assert made.read().life.wanted is Wanted.PAUSE
        assert inbox.commands() == []
    assert not claimed(made.directory)
    assert Place.parse(f"{uri}/small/driver.json").exists() is False
    there = pause()  # nobody drives it: who sends the command carries it out
    output, _ = there.communicate(timeout=60)
    assert there.returncode == 0, output
    assert not claimed(made.directory)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "trials/../../x", "trials/1/..", "s3://other/x", "", "a/trials/0001/\x1b[2J"]
)
def test_a_ledger_cannot_point_out_of_its_sweep(location: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint of a sweep in"):
        mirror.delete_checkpoint(location, tmp_path)
    assert mirror.inside("/elsewhere/old/trials/0001/step-1", tmp_path) == tmp_path / "trials/0001/step-1"


def test_a_journal_in_a_bucket_is_mended_there(
    s3: S3, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, uri = s3
    monkeypatch.setattr(journal, "_PIECE_BYTES", 600)
    made = sweeps.create(spec, open_storage(uri))
    study = made.open()
    for _ in range(4):
        study.tell(study.ask().number, TrialState.FAILED, "x")
    lines = made.ledger.read_bytes().splitlines(keepends=True)
    made.ledger.write_bytes(b"".join([*lines[:-1], b"{torn\n"]))
    mirror.replace_journal(made.ledger)
    mirror.release(made.directory)

    another_machine()
    found = sweeps.find("small", open_storage(uri))
    with pytest.raises(ValueError, match=f"line {len(lines)} is not readable"):
        found.read()
    server.requests.clear()
    lost = found.repair()
    assert lost is not None
    assert "kept as study.journal.broken-1" in lost
    asked = [f"{method} {path}" for method, path in server.requests]
    assert not [one for one in asked if "DELETE" in one and one.endswith(f"{0:015d}")]  # never without one
    mirror.release(found.directory)

    another_machine()
    found = sweeps.find("small", open_storage(uri))
    assert len(found.read().trials()) == 4
    assert (found.directory / "study.journal.broken-1").exists()
