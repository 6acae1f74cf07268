"""Data that was sent with a sweep, and is gone when the sweep is to go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from search import mirror
from search.keeping import found, keep
from search.loading import load
from search.mirror import open_storage, places
from search.spec import SweepSpec
from tests.cli import write_sweep
from tests.object_store import ObjectStore
from training.store import DamagedFile, Place


def sent(directory: Path) -> tuple[SweepSpec, dict[Path, bytes]]:
    """A sweep, and what its data files hold."""
    spec = load(str(write_sweep(directory)))
    paths = [Path(spec.data.train), Path(spec.data.validation or "")]
    return spec, {path: path.read_bytes() for path in paths}


def test_data_that_is_gone_is_taken_from_where_it_was_kept(tmp_path: Path) -> None:
    spec, contents = sent(tmp_path)
    sweep = tmp_path / "runs" / "sweep"
    sweep.mkdir(parents=True)
    keep(spec, sweep)
    assert found(spec, sweep) == spec  # what was named is there
    train, validation = contents
    train.write_text("other")
    keep(spec, sweep)  # by a driver that was started again: what is there counts
    train.unlink()
    again = found(spec, sweep)
    assert again.data.train == str(sweep / "data" / "train.jsonl")
    assert Path(again.data.train).read_bytes() == contents[train]
    assert again.data.validation == str(validation)
    assert sorted(path.name for path in (sweep / "data").iterdir()) == ["train.jsonl", "validation.jsonl"]


def test_a_data_set_directory_is_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "train.jsonl").write_text("{}")
    data = {"name": "reviews", "train": "train", "validation": "validation"}
    spec = load(str(write_sweep(tmp_path, data=data)))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    keep(spec, sweep)
    (tmp_path / "reviews").rename(tmp_path / "away")
    again = found(spec, sweep)
    assert again.data.name == str(sweep / "data" / "name")
    assert (sweep / "data" / "name" / "train.jsonl").read_text() == "{}"
    assert again.data.train == "train"


def test_what_nobody_kept_stays_as_it_is_named(tmp_path: Path) -> None:
    spec, contents = sent(tmp_path)
    for path in contents:
        path.unlink()
    assert found(spec, tmp_path / "sweep") == spec


def test_a_bucket_keeps_it_and_tells_what_was_altered(s3: tuple[ObjectStore, str], tmp_path: Path) -> None:
    _, uri = s3
    spec, contents = sent(tmp_path)
    directory = open_storage(uri) / "sweep"
    directory.mkdir()
    keep(spec, directory)
    mirror.push_changes(directory)
    place = Place.parse(uri) / "sweep"
    assert set(place.files()) == {"data/checksums.json", "data/train.jsonl", "data/validation.jsonl"}
    for path in contents:
        path.unlink()

    places._mirrors.clear()  # another machine
    again = found(spec, open_storage(uri) / "sweep")
    assert Path(again.data.train).read_bytes() == next(iter(contents.values()))
    (place / "data" / "train.jsonl").write(b"altered")
    places._mirrors.clear()
    with pytest.raises(DamagedFile, match=r"train\.jsonl: contents do not match"):
        found(spec, open_storage(uri) / "sweep")
    (place / "data" / "checksums.json").write(b'{"../../escaped": {}}')
    places._mirrors.clear()
    with pytest.raises(ValueError, match="leads out"):
        found(spec, open_storage(uri) / "sweep")
