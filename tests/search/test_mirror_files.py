"""The files beside a ledger, in a real S3 server: what is put when, and checked on its way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search import mirror
from search.mirror import files, open_storage
from tests.search.test_mirror import S3, another_machine
from training.checksums import DamagedFile
from training.store import Place


def test_files_go_there_when_they_change_and_are_checked_when_they_come_back(s3: S3, tmp_path: Path) -> None:
    server, uri = s3
    directory = open_storage(uri) / "sweep"
    (directory / "trials" / "0001").mkdir(parents=True)
    (directory / "trials" / "0001" / "scratch").write_text("not this")
    (directory / ".hidden").write_text("nor this")
    (directory / "metrics.jsonl").write_text("one\n")
    (directory / "reports").mkdir()
    (directory / "reports" / "a.html").write_text("<p>")
    mirror.push_changes(directory)
    place = Place.parse(uri) / "sweep"
    assert set(place.files()) == {".index.json", "metrics.jsonl", "reports/a.html"}
    server.requests.clear()
    mirror.push_changes(directory)
    assert server.requests == []
    (directory / "metrics.jsonl").write_text("one\ntwo\n")
    mirror.push_changes(directory)

    another_machine()
    copy = open_storage(uri) / "sweep"
    mirror.pull(copy)
    assert (copy / "metrics.jsonl").read_text() == "one\ntwo\n"
    assert (copy / "reports" / "a.html").read_text() == "<p>"
    (place / "metrics.jsonl").write(b"one\n")  # a writer was killed before it came to this
    another_machine()
    copy = open_storage(uri) / "sweep"
    mirror.pull(copy)
    assert (copy / "metrics.jsonl").read_text() == "one\n"
    (place / "metrics.jsonl").write(b"two\n")
    another_machine()
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl: contents do not match"):
        mirror.pull(open_storage(uri) / "sweep")
    (place / ".index.json").write(json.dumps({"../../escaped": ["0" * 64]}).encode())
    with pytest.raises(ValueError, match="leads out"):
        mirror.pull(open_storage(uri) / "sweep")


def test_a_large_file_that_grows_is_not_put_for_every_line(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    server, uri = s3
    directory = open_storage(uri) / "sweep"
    directory.mkdir(parents=True)
    large, small = directory / "metrics.jsonl", directory / "driver.log"
    large.write_bytes(b"x" * 2_000_000)  # rests for ten seconds
    small.write_bytes(b"x")
    mirror.push_changes(directory, at_leisure=True)
    server.requests.clear()
    for file in (large, small):
        with file.open("ab") as more:
            more.write(b"y")
    mirror.push_changes(directory, at_leisure=True)
    put = [path.rpartition("/")[2] for method, path in server.requests if method == "PUT"]
    assert put == [".index.json", "driver.log"]
    monkeypatch.setattr(files, "_LEISURE_BYTES_PER_S", 2e9)
    mirror.push_changes(directory, at_leisure=True)
    assert (Place.parse(uri) / "sweep" / "metrics.jsonl").read()[-1:] == b"y"
    monkeypatch.setattr(files, "_LEISURE_BYTES_PER_S", 1.0)
    large.write_bytes(b"the end")
    mirror.push_changes(directory, at_leisure=True)
    assert (Place.parse(uri) / "sweep" / "metrics.jsonl").read()[-1:] == b"y"
    mirror.push_changes(directory)  # a sweep that ends leaves nothing behind
    assert (Place.parse(uri) / "sweep" / "metrics.jsonl").read() == b"the end"
