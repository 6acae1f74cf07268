"""Places on disk and in a real S3 server: whole or not at all, patient, and readable when they fail."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.object_store import ObjectStore
from training import checkpoint
from training.checkpoint import DamagedCheckpoint, Identity, State, Told
from training.checksums import DamagedFile, get_files, put_tree
from training.draft import Draft
from training.optim import Slots
from training.store import Place, StorageError, near

S3 = tuple[ObjectStore, str]


@pytest.fixture(params=["directory", "s3", "gs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of each kind."""
    if request.param == "directory":
        return Place.parse(str(tmp_path / "store"))
    if request.param == "gs":
        return Place.parse(request.getfixturevalue("gs"))
    return Place.parse(request.getfixturevalue("s3")[1])


def test_objects_come_back_as_they_were_put(place: Place, tmp_path: Path) -> None:
    one, two = place / "a" / "one.json", place / "a/b/two.bin"
    with pytest.raises(FileNotFoundError):
        one.read()
    one.write(b"first")
    one.write(b"second")
    large = tmp_path / "large"
    large.write_bytes(os.urandom(12 * 2**20))  # more than one part
    two.upload(large)
    assert one.read() == b"second"
    two.download(tmp_path / "copy" / "large")
    assert (tmp_path / "copy" / "large").read_bytes() == large.read_bytes()
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["large"]
    assert place.files() == {"a/one.json": 6, "a/b/two.bin": 12 * 2**20}
    assert (place / "a").children() == ["b", "one.json"]
    assert (place / "nothing").files() == {}
    assert (place / "nothing").children() == []
    one.remove()
    one.remove()
    assert not one.exists()
    assert two.exists()
    place.remove_tree()
    place.remove_tree()
    assert place.files() == {}


def test_trees_are_checked(place: Place, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "config.json").write_text("{}")
    (tree / "inner" / "weights").write_bytes(b"w" * 1000)
    put_tree(tree, place)
    described = json.loads((place / "checksums.json").read())
    get_files(place, described, tmp_path / "back")
    assert (tmp_path / "back" / "inner" / "weights").read_bytes() == b"w" * 1000
    (place / "inner/weights").write(b"w" * 999 + b"v")
    with pytest.raises(DamagedFile, match="inner/weights: contents do not match"):
        get_files(place, described, tmp_path / "again")
    (place / "config.json").remove()
    with pytest.raises(DamagedFile, match=r"config\.json: is missing"):
        get_files(place, described, tmp_path / "again")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must not be empty"),
        ("ftp://host/x", "ftp:// is not a store that Thaw knows"),
        ("s3://KEY:planted-secret@bucket/x", "keys and endpoints come from the environment"),
        ("s3://bucket/x?secret_key=planted-secret", "keys and endpoints come from the environment"),
        ("s3:///x", "must be s3://BUCKET/PREFIX"),
        ("s3://bucket/a/../../b", "must be s3://BUCKET/PREFIX"),
        ("runs\x1b[2J", "control characters"),
    ],
)
def test_what_is_no_place_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        Place.parse(text)
    assert "planted-secret" not in str(error.value)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a\nb"])
def test_no_name_leads_out_of_a_place(name: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        Place("s3://bucket/prefix") / name


def failing(server: ObjectStore, kind: str, every: int) -> list[str]:
    """Lets each `every`th request fail, and tells which."""
    hit: list[str] = []
    count = 0

    def fault(method: str, path: str) -> str | None:
        nonlocal count
        count += 1
        if count % every:
            return None
        hit.append(f"{method} {path}")
        return kind

    server.fault = fault
    return hit


@pytest.mark.parametrize("kind", ["503", "reset", "slow"])
def test_a_store_that_fails_now_and_then_is_asked_again(s3: S3, tmp_path: Path, kind: str) -> None:
    server, uri = s3
    place = Place.parse(uri)
    large = tmp_path / "large"
    large.write_bytes(os.urandom(2**20))
    hit = failing(server, kind, every=3)
    (place / "large").upload(large)
    (place / "small").write(b"small")
    assert (place / "small").read() == b"small"
    (place / "large").download(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert place.files() == {"large": 2**20, "small": 5}
    assert hit


def test_a_store_that_is_away_is_one_readable_error(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    server, uri = s3
    monkeypatch.setenv("THAW_STORAGE_PATIENCE_S", "2")
    server.fault = lambda method, path: "503"
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot write \(asked for 2 s\)") as error:
        (Place.parse(uri) / "x").write(b"x")
    assert 1 < time.monotonic() - began < 30
    assert "\n" not in str(error.value)
    assert "planted-secret" not in str(error.value)
    server.fault = None
    began = time.monotonic()
    with pytest.raises(OSError, match="no-such-bucket"):
        (Place.parse("s3://no-such-bucket") / "x").write(b"x")
    assert time.monotonic() - began < 2  # waiting does not mend it


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 64 KiB: EFBIG, where a full disk says ENOSPC."""
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, full_disk: None) -> None:
    place = Place.parse(str(tmp_path))
    (place / "x").write(b"before")
    with pytest.raises(StorageError, match="cannot write"):
        (place / "x").write(b"y" * 2**20)
    assert (place / "x").read() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# Checkpoints in an object store

IDENTITY = Identity(model="m", data="d", settings="s")


def state(step: int, size: int = 4) -> State:
    return State(
        step=step,
        weights={"a": torch.full((size,), float(step)), "b": torch.arange(float(size))},
        slots={"a": Slots(tensors={"exp_avg": torch.ones(size)}, steps=step)},
        seconds=1.5,
    )


def write(remote: Place, scratch: Path, step: int, ranks: int = 2) -> str:
    drafts = [
        Draft(
            checkpoint.path_of(scratch / str(rank), step),
            state(step),
            rank=rank,
            ranks=ranks,
            token=f"{step:08x}",
            remote=remote,
        )
        for rank in range(ranks)
    ]
    files = {name: file for draft in drafts for name, file in draft.files().items()}
    told = [Told(step=step, metrics={"eval/loss": 0.5})]
    return drafts[0].commit(files, IDENTITY, phase="full", history=told).location


def test_checkpoints_in_an_object_store(s3: S3, tmp_path: Path) -> None:
    server, uri = s3
    remote = Place.parse(uri) / "trials" / "0001"
    assert checkpoint.newest(tmp_path / "scratch", IDENTITY, remote) is None
    write(remote, tmp_path / "scratch", 10)
    server.requests.clear()
    location = write(remote, tmp_path / "scratch", 20)
    assert location == f"{remote}/step-00000020"
    puts = [path for method, path in server.requests if method == "PUT"]
    assert puts[-1].endswith("step-00000020/manifest.json")  # last: where it is, the checkpoint is
    assert len([path for path in puts if path.endswith(".safetensors")]) == 4
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]

    found = checkpoint.newest(tmp_path / "elsewhere", IDENTITY, remote)
    assert found is not None
    assert (found.location, found.state.step, found.phase) == (location, 20, "full")
    assert found.state.weights["a"].tolist() == [20.0] * 4
    assert found.state.slots["a"].steps == 20
    assert not [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()]

    # Cut short, then altered: passed over.
    (Place(location) / "manifest.json").remove()
    found = checkpoint.newest(tmp_path / "elsewhere", IDENTITY, remote)
    assert found is not None
    assert found.state.step == 10
    location = write(remote, tmp_path / "scratch", 30)
    weights = next(name for name in Place(location).files() if name.startswith("weights-00001"))
    data = bytearray((Place(location) / weights).read())
    data[-1] ^= 1
    (Place(location) / weights).write(bytes(data))
    with pytest.raises(DamagedCheckpoint, match="do not match their checksum"):
        checkpoint.fetch(Place(location), tmp_path / "copy")
    found = checkpoint.newest(tmp_path / "elsewhere", IDENTITY, remote)
    assert found is not None
    assert found.state.step == 10


def test_a_checkpoint_survives_a_failing_store(s3: S3, tmp_path: Path) -> None:
    server, uri = s3
    remote = Place.parse(uri)
    hit = failing(server, "reset", every=3)
    write(remote, tmp_path / "scratch", 10)
    found = checkpoint.newest(tmp_path / "elsewhere", IDENTITY, remote)
    assert found is not None
    assert found.state.step == 10
    assert hit


def test_a_place_is_worked_in_nearby(tmp_path: Path) -> None:
    with near(Place(str(tmp_path))) as directory:
        assert directory == tmp_path
    with near(Place("s3://bucket/x")) as directory:
        assert directory.is_dir()
    assert not directory.exists()
