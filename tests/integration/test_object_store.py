"""A real sweep in a bucket: its driver is killed, and another machine finishes it from the bucket alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search import sweep as sweeps
from search.loading import to_yaml
from search.mirror import open_storage
from search.records import TrialRecord, TrialState
from search.spec import SweepSpec
from tests.conftest import REPOSITORY
from tests.object_store import ObjectStore
from tests.processes import MARK, marked, new_mark
from training.store import Place

KEYS = {"WANDB_API_KEY": "5ec2e7" * 6 + "abcd", "THAW_PLANTED": "planted-secret-of-nobody"}
"""Beside the store's own: what must not be found anywhere afterwards."""


@pytest.fixture
def ray_directory() -> Iterator[Path]:
    """Where Ray's sessions are; short, since sockets are made in it."""
    path = Path(tempfile.mkdtemp(prefix="thaw-t-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def records(uri: str) -> list[TrialRecord]:
    try:
        return sweeps.find("small", open_storage(uri)).read().trials()
    except ValueError:  # not there yet
        return []


@pytest.mark.slow
def test_a_sweep_in_a_bucket_outlives_its_driver_and_keeps_no_key(
    make_spec: Callable[..., SweepSpec],
    s3: tuple[ObjectStore, str],
    tmp_path: Path,
    cache: Path,
    ray_directory: Path,
    request: pytest.FixtureRequest,
) -> None:
    server, uri = s3
    spec = make_spec(
        training={"epochs": 2, "evaluations_per_epoch": 2, "batch_size": 16},
        search={
            "metric": {"name": "eval/accuracy", "goal": "maximize"},
            "sampler": "random",
            "scheduler": "none",
            "trials": 2,
            "seed": 1,
        },
        tracking={"wandb": {"mode": "offline"}},
    )
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    file = tmp_path / "here" / "small.yaml"
    file.write_text(to_yaml(spec))
    mark = new_mark("bucket")
    environment = {**os.environ, **KEYS, MARK: mark, "RAY_TMPDIR": str(ray_directory)}
    command = [sys.executable, str(REPOSITORY / "launch.py")]

    def thaw(*arguments: str, machine: str) -> subprocess.Popen[str]:
        scratch = tmp_path / machine / "tmp"
        scratch.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*command, *arguments, "--storage", uri],
            env={**environment, "THAW_CACHE": str(cache), "TMPDIR": str(scratch)},
            cwd=tmp_path / machine,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    secrets = [*KEYS.values(), server.environment()["AWS_SECRET_ACCESS_KEY"]]
    running = thaw("run", str(file), machine="here")
    request.addfinalizer(running.kill)
    deadline = time.monotonic() + 900  # nothing is timed; a hang ends
    lines: dict[int, str] = {}
    while not any(len(trial.results) >= 2 for trial in records(uri)):
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline
        lines |= marked(mark)
        time.sleep(1)
    lines |= marked(mark)
    running.kill()
    first_output, _ = running.communicate(timeout=30)
    before = records(uri)
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not marked(mark)
    assert any("RayTrainWorker" in line or "ray::" in line for line in lines.values()), lines

    resumed = thaw("resume", "small", machine="there")
    request.addfinalizer(resumed.kill)
    while resumed.poll() is None:
        assert time.monotonic() < deadline
        lines |= marked(mark)
        time.sleep(1)
    output, _ = resumed.communicate(timeout=30)
    assert resumed.returncode == 0, output
    after = records(uri)
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 2
    assert [trial.params for trial in after][: len(before)] == [trial.params for trial in before]
    kept = [(result.epochs, result.metrics) for result in before[0].results]
    assert [(result.epochs, result.metrics) for result in after[0].results][: len(kept)] == kept
    assert [result.epochs for result in after[0].results] == [0.5, 1.0, 1.5, 2.0]
    assert f"{uri}/small/best" in output

    # In the bucket is what the ledger says, and nothing lies about on either machine.
    bucket = Place.parse(uri) / "small"
    stored = bucket.files()
    named = {r.checkpoint for trial in after for r in trial.results if r.checkpoint}
    manifests = {
        f"{uri}/small/{name.rpartition('/')[0]}" for name in stored if name.endswith("/manifest.json")
    }
    assert manifests == named
    checksums = json.loads((bucket / "best/checksums.json").read())
    assert {"config.json", "model.safetensors"} <= checksums.keys()
    assert any(name.startswith("wandb/offline-run-") for name in stored)
    for machine in ("here", "there"):
        left = [p for p in (tmp_path / machine / "tmp").iterdir() if p.name.startswith("thaw-")]
        assert machine == "here" or not left  # the one that was killed could not tidy up
    exported = subprocess.run(
        [*command, "export", "small", "--storage", uri, "-o", f"{uri}-models/small"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert exported.returncode == 0, exported.stderr
    assert (Place.parse(f"{uri}-models/small") / "model.safetensors").read() == (
        bucket / "best/model.safetensors"
    ).read()

    # No key is anywhere: command lines, what was printed, Ray's logs and metadata, the bucket.
    said = {"output": (first_output + output).encode(), "process list": "\n".join(lines.values()).encode()}
    said |= {f"bucket: {name}": (bucket / name).read() for name in stored}
    said |= {
        str(path): path.read_bytes()
        for path in [*ray_directory.rglob("*"), *(tmp_path / "here").rglob("*"), *cache.rglob("*.json")]
        if path.is_file() and not path.is_symlink()
    }
    assert any("/logs/" in name for name in said)
    assert [name for name, data in said.items() for secret in secrets if secret.encode() in data] == []
