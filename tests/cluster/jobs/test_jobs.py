"""A sweep submitted to a real cluster that asks for a token: followed, killed, asked, refused.

All of Ray runs in processes of its own here, with an environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import MODEL, REPOSITORY
from tests.processes import MARK, marked, new_mark, wait_for

BIN = Path(sys.executable).parent
PLANTED = "planted-" + "key-0123456789"


@dataclass(frozen=True)
class Head:
    """A cluster of one node."""

    url: str
    environment: Mapping[str, str]
    storage: Path
    session: Path
    """Ray's own files."""
    mark: str

    def thaw(
        self, *args: str | Path, timeout_s: float = 240, **changed: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPOSITORY / "launch.py"), *map(str, args), "--address", self.url],
            # Ray would go by its own variable, and not by the address that is given.
            env={**self.environment, "WANDB_API_KEY": PLANTED, "RAY_ADDRESS": "127.0.0.1:9", **changed},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def drivers(self) -> list[int]:
        """Pids of the sweep's driver."""
        return [
            pid
            for pid, line in marked(self.mark).items()
            if "launch.py run" in line and "supervise" not in line
        ]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in taken]


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Head]:
    """A cluster of the test's own: another try of it meets nothing of the last one."""
    place = tmp_path_factory.mktemp("jobs")
    token = place / "token"
    token.write_text(secrets.token_hex(32))
    temporary = tempfile.mkdtemp(prefix="thaw-")  # short: Ray puts sockets there
    mark = new_mark("jobs")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_"))},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "THAW_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    gcs, client, dashboard, agent = free_ports(4)
    running = subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *(
                f"--port={gcs}",
                f"--ray-client-server-port={client}",
                f"--dashboard-agent-listen-port={agent}",
            ),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--temp-dir={temporary}", f"--object-store-memory={128 * 2**20}"),
        ],
        env={**environment, MARK: mark, "THAW_STORAGE": str(place / "runs")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{dashboard}/api/version"), 60, "the dashboard")
        yield Head(f"http://127.0.0.1:{dashboard}", environment, place / "runs", Path(temporary), mark)
    finally:
        for pid in (running.pid, *marked(mark)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        running.wait(30)
        shutil.rmtree(temporary, ignore_errors=True)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError:
        return True  # it asks for a token
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_submitted_sweep_is_followed_killed_finished_extended_paused_and_resumed(
    head: Head, sentences: Path, tmp_path: Path
) -> None:
    before = dict(os.environ)
    file = tmp_path / "sweep.yaml"
    data = {name: tmp_path / f"{name}.jsonl" for name in ("train", "validation")}
    for name, path in data.items():
        shutil.copyfile(sentences / f"{name}.jsonl", path)
    raw = {
        "name": "far",
        "model": {"name": MODEL},
        "task": {"max_length": 32},
        "data": {name: str(path) for name, path in data.items()},
        "training": {"epochs": 1, "evaluations_per_epoch": 2, "batch_size": 16},
        "parameters": {"learning_rate": {"values": [1e-4, 2e-4, 5e-4, 1e-3]}},
        "search": {
            "metric": {"name": "eval/accuracy", "goal": "maximize"},
            "sampler": "random",
            "scheduler": "none",
            "trials": 2,
        },
        "resources": {"max_concurrent": 1},
        "tracking": {"wandb": None},
    }
    file.write_text(yaml.safe_dump(raw))

    stranger = head.thaw("submit", file, RAY_AUTH_TOKEN="0" * 64)
    assert stranger.returncode == 2
    assert "asks for Ray's token" in stranger.stderr

    sent = head.thaw("submit", file, "--detach")
    assert sent.returncode == 0, sent.stderr
    assert "thaw logs far" in sent.stderr
    twice = head.thaw("submit", file)
    assert twice.returncode == 2
    assert "is running on" in twice.stderr

    def evaluations() -> int:
        from search.study import Study

        try:
            return sum(len(t.results) for t in Study.read(head.storage / "far" / "study.journal").trials())
        except ValueError:
            return 0

    wait_for(lambda: evaluations() >= 1, 240, "the first evaluation")
    lines = marked(head.mark)
    assert PLANTED not in " ".join(lines.values())
    [driver] = head.drivers()
    os.kill(driver, signal.SIGKILL)

    followed = head.thaw("logs", "far", "-f")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "the driver was killed by signal 9; started again" in followed.stdout
    asked = head.thaw("trials", "far", "--json")
    assert asked.returncode == 0, asked.stderr
    assert asked.stderr == ""
    trials = json.loads(asked.stdout)
    assert [trial["state"] for trial in trials] == ["complete", "complete"]
    assert [trial["epochs"] for trial in trials] == [1.0, 1.0]
    assert (head.storage / "far" / "best" / "model.safetensors").exists()

    # It goes on though nothing of it is left here, and Ray has forgotten what was sent.
    for name in ("train", "validation"):
        data[name].unlink()
    file.unlink()
    more = head.thaw("extend", "far", "--trials", "+2")
    assert more.returncode == 0, more.stderr
    assert f"go on with: thaw resume far --address {head.url}\n" in more.stdout
    on = head.thaw("resume", "far", "--detach")
    assert on.returncode == 0, on.stderr
    before_pause = evaluations()
    wait_for(lambda: evaluations() > before_pause, 240, "a further evaluation")
    paused = head.thaw("pause", "far")
    assert paused.returncode == 0, paused.stderr
    ended = head.thaw("logs", "far", "-f")
    assert ended.returncode == 130, ended.stdout + ended.stderr
    assert f"paused; go on with: thaw resume far --address {head.url}\n" in ended.stdout
    wrong = head.thaw("resume", "far", "--set", "search.seed=5")
    assert wrong.returncode == 2
    assert "search.seed" in wrong.stderr
    finished = head.thaw("resume", "far")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "sweep far goes on" in finished.stderr
    after = head.thaw("trials", "far", "--json")
    assert [trial["state"] for trial in json.loads(after.stdout)] == ["complete"] * 4

    missing = head.thaw("trials", "near")
    assert missing.returncode == 2
    assert "there is no sweep 'near'" in missing.stderr
    unknown = head.thaw("logs", "near")
    assert unknown.returncode == 2
    assert "there are far" in unknown.stderr
    assert dict(os.environ) == before

    # Neither the key that lies in the sender's environment nor the cluster's token went anywhere.
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    jobs = urllib.request.Request(f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(jobs, timeout=30) as answer:
        metadata = answer.read().decode()
    assert '"thaw": "sweep"' in metadata
    written = [path for path in [*head.storage.rglob("*"), *head.session.rglob("*.*")] if path.is_file()]
    assert any(path.name == "driver.log" for path in written)
    assert any(path.name.startswith("job-driver-far") for path in written)
    for secret in (PLANTED, token):
        assert secret not in metadata + followed.stdout + followed.stderr
        assert not [path for path in written if secret.encode() in path.read_bytes()]


def test_no_dashboard_is_one_message(tmp_path: Path) -> None:
    [port] = free_ports(1)
    # Without what a cluster that was connected before in this process asked for.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    ended = subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "launch.py"),
            "trials",
            "x",
            "--address",
            f"http://127.0.0.1:{port}",
        ],
        env={**clean, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "no Ray dashboard at" in ended.stderr
    assert "Traceback" not in ended.stderr
