"""The bundled sentences: split, balanced, without leakage, and small."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

import search

DIRECTORY = Path(search.__file__).parent / "sweeps" / "movie-reviews"
SPLITS = {"train": range(8), "validation": [8], "test": [9]}
SIZES = {"train": 8038, "validation": 992, "test": 1011}


def rows(split: str) -> list[dict[str, str]]:
    with open(DIRECTORY / f"{split}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def digest(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_the_two_fields_and_are_balanced(split: str) -> None:
    found = rows(split)
    assert len(found) == SIZES[split]
    assert all(row.keys() == {"text", "label"} and row["text"].strip() for row in found)
    counts = Counter(row["label"] for row in found)
    assert counts.keys() == {"positive", "negative"}
    assert 0.48 < counts["positive"] / len(found) < 0.52


@pytest.mark.parametrize("split", SPLITS)
def test_splits_follow_from_the_hash_of_the_text(split: str) -> None:
    digests = [digest(row["text"]) for row in rows(split)]
    assert all(d % 10 in SPLITS[split] for d in digests)
    assert digests == sorted(digests)


def test_no_sentence_is_there_twice() -> None:
    texts = [row["text"].casefold().strip() for split in SPLITS for row in rows(split)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(("split", "limit"), [("train", 2000), ("validation", 500)])
def test_the_first_rows_are_a_fair_sample(split: str, limit: int) -> None:
    positive = sum(row["label"] == "positive" for row in rows(split)[:limit])
    assert 0.46 < positive / limit < 0.54


def test_it_is_small_and_says_where_it_is_from() -> None:
    assert sum(p.stat().st_size for p in DIRECTORY.iterdir()) < 1_500_000
    note = (DIRECTORY / "README.md").read_text()
    assert "Hutto" in note
    assert "ICWSM" in note
    assert "The MIT License (MIT)" in note
    assert "Copyright (c) 2016 C.J. Hutto" in note
