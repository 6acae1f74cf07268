"""`thaw cluster render|up|down` as a user calls them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli import Thaw, caller, write_sweep
from tests.conftest import REPOSITORY

CONFIG = """
provider: aws
machine_image: ami-0123456789abcdef0
region: us-west-2
workers: [{type: c6i.2xlarge, cpus: 8}]
install: thaw
"""
JOB = "kind: RayJob\napiVersion: ray.io/v1\n"


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thaw:
    return caller(monkeypatch, capsys)


def test_render_writes_what_the_sweep_can_use(thaw: Thaw, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, resources={"workers": 4, "cpus_per_worker": 4})
    (tmp_path / "cluster.yaml").write_text(CONFIG)
    out = thaw("cluster", "render", sweep, "--config", tmp_path / "cluster.yaml")
    assert out.code == 0, out.err
    assert yaml.safe_load(out.out)["max_workers"] == 8  # four trials of four workers, two to a node
    again = thaw(
        *("cluster", "render", sweep, "--config", tmp_path / "cluster.yaml", "--set", "search.trials=1"),
        *("-o", tmp_path / "ray.yaml"),
    )
    assert again.code == 0, again.err
    assert yaml.safe_load((tmp_path / "ray.yaml").read_text())["max_workers"] == 2


def test_render_refuses_what_cannot_be(thaw: Thaw, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, resources={"workers": 1, "cpus_per_worker": 64})
    config = tmp_path / "cluster.yaml"
    assert "cannot be read" in thaw("cluster", "render", sweep, "--config", config).err
    config.write_text(CONFIG)
    out = thaw("cluster", "render", sweep, "--config", config)
    assert (out.code, out.out) == (2, "")
    assert "no node of cluster.workers can hold a worker" in out.err
    out = thaw("cluster", "render", sweep, "--config", config, "--provider", "moon")
    assert out.code == 2
    assert "aws, gcp, azure, kuberay, local" in out.err


@pytest.mark.parametrize(("command", "verb"), [("up", "apply"), ("down", "delete")])
def test_kubectl_is_given_the_job(
    thaw: Thaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, verb: str
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = thaw("cluster", command, job)
    assert missing.code == 2
    assert "kubectl: is not installed here" in missing.err

    told = tmp_path / "told"
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!{sys.executable}\nimport sys\nopen({str(told)!r}, "w").write(" ".join(sys.argv[1:]))\n'
    )
    kubectl.chmod(0o700)
    assert thaw("cluster", command, job).code == 0
    assert told.read_text().startswith(verb)
    assert str(job) in told.read_text()

    kubectl.write_text("#!/bin/sh\nexit 3\n")
    assert thaw("cluster", command, job).code == 1


def test_what_ray_up_starts_has_a_token(tmp_path: Path) -> None:
    """Ray itself refuses this file, after the token has been made: nothing is started here."""
    file = tmp_path / "ray.yaml"
    file.write_text("cluster_name: x\nprovider: {type: local}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, REPOSITORY / "launch.py", "cluster", "up", file],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    token = tmp_path / ".ray" / "auth_token"
    assert len(token.read_text()) > 20
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() not in ended.stdout + ended.stderr


def test_other_files_are_refused(thaw: Thaw, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    for text in ("a: 1", "a: b: c", "", "[" * 5_000, "a: " + "9" * 5_000, "#" * 3_000_000):
        file.write_text(text)
        out = thaw("cluster", "up", file)
        assert out.code == 2
        assert len(out.err) < 1_000
    assert thaw("cluster", "down", tmp_path / "none.yaml").code == 2
