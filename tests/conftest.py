"""What all tests share: one cache, one Ray cluster, small real data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the session's own, so that the user's is neither used nor littered."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("THAW_CACHE")
    os.environ["THAW_CACHE"] = str(path)
    yield path
    os.environ.pop("THAW_CACHE")
    if before is not None:
        os.environ["THAW_CACHE"] = before


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with small real data: train.jsonl (160 sentences) and validation.jsonl (60)."""
    path = tmp_path_factory.mktemp("sentences")
    for split, count in (("train", 160), ("validation", 60)):
        source = REPOSITORY / "search" / "sweeps" / "movie-reviews" / f"{split}.jsonl"
        lines = source.read_text().splitlines()[:count]
        assert all(json.loads(line)["label"] in ("positive", "negative") for line in lines)
        (path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return path
