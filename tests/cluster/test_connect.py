"""What this machine has, and addresses where there is no cluster. Ray is not started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.connect import _node_types, connected, local_node
from tests.conftest import REPOSITORY
from tests.processes import MARK, marked, new_mark


def test_the_cpus_are_those_that_this_process_may_use() -> None:
    one = min(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, [{one}]); from cluster.connect import local_node\n"
    script += "print(local_node()['CPU'])"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert float(ended.stdout) == 1
    assert local_node()["CPU"] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("visible", "gpus"), [("", 0), ("-1", 0), ("0", 1), ("0, 2,3", 3)])
def test_the_gpus_are_the_visible_ones(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_node()["GPU"] == gpus


def test_the_gpus_are_counted_by_the_driver_s_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_node()["GPU"] == 0
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: a)'\necho 'GPU 1: two (UUID: b)'\n")
    tool.chmod(0o755)
    assert local_node()["GPU"] == 2
    tool.write_text("#!/bin/sh\necho 'no driver' >&2\nexit 9\n")
    assert local_node()["GPU"] == 0


def test_an_address_without_a_cluster_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cases = {
        f"127.0.0.1:{port}": "Connection refused",
        f"ray://127.0.0.1:{port}": "Connection refused",
        f"no-such-host.invalid:{port}": "",  # in the resolver's words
        "somewhere": "it is neither HOST:PORT nor auto",
        "head:gcs": "'gcs' is not a port",
        "127.0.0.1:99999999": "",
    }
    began = time.monotonic()
    for address, why in cases.items():
        with pytest.raises(ValueError, match=r"^--address: no Ray cluster at ") as caught, connected(address):
            pass
        assert f"no Ray cluster at {address!r} ({why}" in str(caught.value)
        assert "`ray start --head`" in str(caught.value)
    assert time.monotonic() - began < 15


def test_looking_at_this_machine_imports_nothing_heavy() -> None:
    script = (
        "import sys; from cluster.connect import local_node; local_node(); "
        "print({'ray', 'torch'} & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert ended.stdout.strip() == "set()"


def test_kinds_of_nodes_are_read_from_the_environment() -> None:
    text = '[{"name": "workers-0", "CPU": 8, "GPU": 1, "max": 4}, {"name": "b", "CPU": 2, "max": 99999999}]'
    kinds = _node_types(text)
    assert kinds["workers-0"] == ({"CPU": 8.0, "GPU": 1.0}, 4)
    assert kinds["b"] == ({"CPU": 2.0, "GPU": 0.0}, 10_000)
    for wrong in ("x", "5", "[5]", '[{"name": "a"}]', '[{"name": "a", "max": "many"}]', "{}[]"):
        with pytest.raises(ValueError, match="THAW_NODE_TYPES"):
            _node_types(wrong)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("RAY_TMPDIR", "/dev/null", "Not a directory: '/dev/null/ray'"),
        pytest.param("RAY_gcs_storage", "none", "Timed out waiting for file ", marks=pytest.mark.slow),
    ],
)
def test_a_local_cluster_that_does_not_start_is_one_message(
    tmp_path: Path, name: str, value: str, why: str
) -> None:
    mark = new_mark("no-ray")
    ended = subprocess.run(
        [sys.executable, "launch.py", "run", "quickstart", "--storage", str(tmp_path / "runs")],
        cwd=REPOSITORY,
        env={**os.environ, name: value, MARK: mark},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: Ray did not start on this machine (")
    assert why in line
    assert "give the --address of a cluster that stands" in line
    assert not (tmp_path / "runs").exists()
    assert not marked(mark)
