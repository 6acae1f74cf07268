"""What goes with a sweep that is sent elsewhere."""

from __future__ import annotations

from pathlib import Path

from search.loading import load
from search.portable import portable
from tests.cli import write_sweep


def test_data_that_lies_here_goes_along_under_a_name_of_its_own(tmp_path: Path) -> None:
    spec = load(str(write_sweep(tmp_path)))
    text, files = portable(spec)
    assert files == {
        "data/train.jsonl": tmp_path / "train.jsonl",
        "data/validation.jsonl": tmp_path / "validation.jsonl",
    }
    there = tmp_path / "there"
    for name, path in files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(path.read_bytes())
    (there / "sweep.yaml").write_text(text)
    assert str(tmp_path) not in text
    again = load(str(there / "sweep.yaml"))
    assert again.data.train == str(there / "data" / "train.jsonl")
    assert again.model_copy(update={"data": spec.data}) == spec


def test_what_lies_elsewhere_stays_as_it_is_named(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, data={"train": "/mnt/all/train.jsonl", "validation": "/mnt/all/v.jsonl"})
    text, files = portable(load(str(file)))
    assert files == {}
    assert "/mnt/all/train.jsonl" in text


def test_a_data_set_directory_goes_along_whole(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    data = {"name": "reviews", "train": "train", "validation": "validation"}
    text, files = portable(load(str(write_sweep(tmp_path, data=data))))
    assert files == {"data/name": tmp_path / "reviews"}
    (tmp_path / "there" / "data" / "name").mkdir(parents=True)
    (tmp_path / "there" / "sweep.yaml").write_text(text)
    again = load(str(tmp_path / "there" / "sweep.yaml"))
    assert again.data.name == str(tmp_path / "there" / "data" / "name")
    assert again.data.train == "train"
