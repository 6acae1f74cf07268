"""Data that was sent with a sweep, and is gone when the sweep is to go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from search import mirror
from search.keeping import keep, kept
from search.loading import load
from search.mirror import open_storage, places
from search.portable import portable
from search.spec import SweepSpec
from tests.cli import write_sweep
from tests.object_store import ObjectStore
from training.checksums import DamagedFile
from training.store import Place


def sent(directory: Path) -> tuple[SweepSpec, dict[Path, bytes]]:
    """A sweep, and what its data files hold."""
    spec = load(str(write_sweep(directory)))
    paths = [Path(spec.data.train), Path(spec.data.validation or "")]
    return spec, {path: path.read_bytes() for path in paths}


def test_data_that_is_gone_is_taken_from_where_it_was_kept(tmp_path: Path) -> None:
    spec, contents = sent(tmp_path)
    sweep = tmp_path / "runs" / "sweep"
    sweep.mkdir(parents=True)
    keep(spec, tmp_path, sweep)
    train, validation = contents
    train.write_text("other")
    keep(spec, tmp_path, sweep)  # by a driver that was started again: what is there counts
    again = kept(spec, sweep)
    assert again.data.train == str(sweep / "data" / "train.jsonl")
    assert again.data.validation == str(sweep / "data" / "validation.jsonl")
    assert Path(again.data.train).read_bytes() == contents[train]
    assert Path(again.data.validation).read_bytes() == contents[validation]
    assert sorted(path.name for path in (sweep / "data").iterdir()) == ["train.jsonl", "validation.jsonl"]


def test_a_data_set_directory_is_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "train.jsonl").write_text("{}")
    data = {"name": "reviews", "train": "train", "validation": "validation"}
    spec = load(str(write_sweep(tmp_path, data=data)))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    keep(spec, tmp_path, sweep)
    (tmp_path / "reviews").rename(tmp_path / "away")
    again = kept(spec, sweep)
    assert again.data.name == str(sweep / "data" / "name")
    assert (sweep / "data" / "name" / "train.jsonl").read_text() == "{}"
    assert again.data.train == "train"


def test_what_lies_on_a_share_stays_there(tmp_path: Path) -> None:
    share, job, sweep = tmp_path / "share", tmp_path / "job", tmp_path / "sweep"
    for directory in (share, job, sweep):
        directory.mkdir()
    spec, contents = sent(share)
    keep(spec, job, sweep)
    assert not list(sweep.iterdir())
    assert kept(spec, sweep) == spec
    text, files = portable(spec, within=sweep)  # nor is it sent again
    assert files == {}
    assert all(str(path) in text for path in contents)


def test_a_bucket_keeps_it_and_tells_what_was_altered(s3: tuple[ObjectStore, str], tmp_path: Path) -> None:
    _, uri = s3
    spec, contents = sent(tmp_path)
    directory = open_storage(uri) / "sweep"
    directory.mkdir()
    keep(spec, tmp_path, directory)
    mirror.push_changes(directory)
    place = Place.parse(uri) / "sweep"
    assert set(place.files()) == {"data/checksums.json", "data/train.jsonl", "data/validation.jsonl"}
    for path in contents:
        path.unlink()

    places._mirrors.clear()  # another machine
    again = kept(spec, open_storage(uri) / "sweep")
    assert Path(again.data.train).read_bytes() == next(iter(contents.values()))
    (place / "data" / "train.jsonl").write(b"altered")
    places._mirrors.clear()
    with pytest.raises(DamagedFile, match=r"train\.jsonl: contents do not match"):
        kept(spec, open_storage(uri) / "sweep")
    (place / "data" / "checksums.json").write(b'{"../../escaped": {}}')
    places._mirrors.clear()
    with pytest.raises(ValueError, match="leads out"):
        kept(spec, open_storage(uri) / "sweep")
