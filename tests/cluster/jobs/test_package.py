"""What is sent to a cluster, whether it can run there, and when a dead driver is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.jobs import environment, package, remote
from cluster.jobs.package import Submission, stage
from cluster.jobs.supervise import wait_s
from tests.conftest import REPOSITORY


def test_only_what_is_needed_is_staged(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    folder = tmp_path / "folder"
    (folder / ".git").mkdir(parents=True)
    (folder / "a.csv").write_text("a")
    (folder / ".git" / "config").write_text("secret")
    staged = tmp_path / "staged"
    stage(
        staged,
        Submission(name="x", text="name: x\n", files={"data/train.jsonl": data, "data/test": folder}),
    )
    found = {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()}
    assert {"launch.py", "sweep.yaml", "data/train.jsonl", "data/test/a.csv", "training/loop.py"} <= found
    assert not any(".git" in name or "__pycache__" in name or name.startswith("tests") for name in found)
    # It runs on its own, from there.
    ended = subprocess.run(
        [sys.executable, "launch.py", "--help"], cwd=staged, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_what_is_too_large_is_refused_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_MAX_BYTES", 5_000_000)
    large = tmp_path / "large.jsonl"
    large.write_bytes(b"0" * 9_000_000)
    with pytest.raises(ValueError, match=r"large\.jsonl is the largest") as refused:
        stage(tmp_path / "staged", Submission(name="x", text="", files={"data/train.jsonl": large}))
    assert "put the data where all nodes see it" in str(refused.value)
    assert not (tmp_path / "staged").exists()


def test_this_environment_fits_and_another_does_not() -> None:
    needed = environment.needed()
    assert any(text.startswith("ray") for text in needed)
    names = [environment.Requirement(text).name for text in needed]
    asked = subprocess.run(
        [sys.executable, "-c", environment.probe(names)], capture_output=True, text=True, check=True
    )
    found = environment.read("noise\n" + asked.stdout)
    assert environment.problems(found, needed) == []
    other = {**found, "python": "3.9", "torch": "2.1.0", "optuna": None}
    lines = environment.problems(other, needed)
    assert [line.partition(":")[0] for line in lines] == ["python", "torch", "optuna"]
    assert "the cluster has 2.1.0" in lines[1]
    with pytest.raises(ValueError, match="could not be asked"):
        environment.read("bash: python: command not found")


@pytest.mark.parametrize(
    ("code", "restarts", "expected"),
    [
        (0, 0, None),
        (2, 0, None),
        (130, 0, None),
        (-9, 0, 1.0),
        (-9, 9, 60.0),
        (-9, 10, None),
        (1, 0, 1.0),
        (1, 2, None),
        (137, 3, 8.0),
    ],
)
def test_when_a_driver_is_started_again(code: int, restarts: int, expected: float | None) -> None:
    assert wait_s(code, restarts) == expected


def test_a_killed_driver_is_started_again_and_an_asked_one_is_not(tmp_path: Path) -> None:
    """A driver that says its pid and waits: killed once, then asked to end."""
    program = (
        "import os, signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); "
        f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n'); "
        "time.sleep(60)"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "cluster.jobs.supervise", sys.executable, "-c", program],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )

    def pids(count: int) -> list[int]:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            path = tmp_path / "pids"
            found = path.read_text().split() if path.exists() else []
            if len(found) >= count:
                return [int(pid) for pid in found]
            time.sleep(0.05)
        raise AssertionError("the driver did not start")

    os.kill(pids(1)[0], signal.SIGKILL)
    assert len(set(pids(2))) == 2
    supervisor.terminate()
    _, said = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 130
    assert "was killed by signal 9; started again in 1 s" in said


def test_who_asks_between_two_drivers_gets_none(tmp_path: Path) -> None:
    """The third start would come after four seconds."""
    starts = tmp_path / "starts"
    program = (
        f"import os, signal; open({str(starts)!r}, 'a').write('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "cluster.jobs.supervise", sys.executable, "-c", program],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stderr is not None
    for line in supervisor.stderr:
        if "started again in 4 s" in line:
            break
    supervisor.terminate()
    supervisor.communicate(timeout=3)
    assert supervisor.returncode == 137
    assert starts.read_text() == "xxx"


@pytest.mark.parametrize(("code", "expected"), [(130, 0), (2, 2), (0, 0)])
def test_a_paused_sweep_is_no_failed_job(code: int, expected: int) -> None:
    """Kubernetes would start a failed one again, and with it the sweep."""
    driver = [sys.executable, "-c", f"raise SystemExit({code})"]
    command = [sys.executable, "-m", "cluster.jobs.supervise"]
    assert subprocess.run([*command, *driver], cwd=REPOSITORY, check=False).returncode == code
    paused = subprocess.run([*command, "--paused-is-done", *driver], cwd=REPOSITORY, check=False)
    assert paused.returncode == expected


def test_an_answer_comes_back_whole() -> None:
    answer = remote.Answer(code=2, out='{"a": "ü\n"}\n', err="error: x\n")
    assert remote.read(f"log\n{remote.line(answer)}\nmore") == answer
    assert remote.read("nothing") is None
