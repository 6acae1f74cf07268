"""Real faults: processes killed with SIGKILL in the middle of a sweep, and Ctrl-C on the command line."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import ray
from ray.util.state import list_actors

from search.loading import to_yaml
from search.spec import SweepSpec
from search.study import Study, TrialRecord, TrialState
from search.sweep import Sweep, find
from tests.conftest import REPOSITORY
from tests.integration.conftest import Course
from tests.processes import MARK, marked, new_mark, wait_for
from tests.training.prefix.conftest import shelved

Make = Callable[..., SweepSpec]
Run = Callable[[SweepSpec, Path], Sweep]
Plainly = Callable[[SweepSpec], list[tuple[TrialRecord, Course]]]

TRAINING = {"epochs": 2, "evaluations_per_epoch": 2, "batch_size": 16}
SEARCH = {
    "metric": {"name": "eval/accuracy", "goal": "maximize"},
    "sampler": "random",
    "scheduler": "none",
    "trials": 2,
    "seed": 1,
}


def evaluations(ledger: Path) -> int:
    try:
        return sum(len(trial.results) for trial in Study.read(ledger).trials())
    except ValueError:  # not there yet
        return 0


def entries(cache: Path, since: float) -> dict[Path, tuple[int, float]]:
    """What of the prefix store was opened since a time: inode of each entry, and when that was at last."""
    statuses = {path: path.stat() for path in shelved(cache)}
    return {path: (s.st_ino, s.st_mtime) for path, s in statuses.items() if s.st_mtime >= since}


def torch_in(pid: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return False


def alive(name: str) -> list[int]:
    """Pids of the live actors whose class name has `name` in it."""
    here = ray.get_runtime_context().gcs_address  # other clusters may stand on this machine
    actors = list_actors(address=here, filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor.pid for actor in actors if name in actor.class_name and actor.pid]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "workers"), [("TrainWorker", 1), ("TrainWorker", 2), ("Trainable", 2)])
def test_a_killed_process_costs_at_most_the_way_back_to_a_checkpoint(
    make_spec: Make, run_sweep: Run, plainly: Plainly, tmp_path: Path, victim: str, workers: int
) -> None:
    """And the trials come to what one undisturbed worker comes to, whatever the number of workers is."""
    # What dropout draws depends on the number of workers.
    training = TRAINING if workers == 1 else TRAINING | {"dropout": 0.0}
    spec = make_spec(training=training, search=SEARCH, resources={"workers": workers, "max_concurrent": 1})
    ledger = tmp_path / "small" / "study.journal"
    killed: list[int] = []
    cleaners: list[int] = []
    heavy: list[bool] = []
    before = set(alive(""))

    def kill() -> None:
        wait_for(lambda: evaluations(ledger) >= 2, 120)  # in the middle of the first trial
        cleaners.extend(alive("Cleaner"))
        everyone, computing = alive(""), alive("TrainWorker")
        pid = alive(victim)[-1]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        heavy.extend(torch_in(other) for other in {*everyone} - {*computing} - before - {pid})

    killer = threading.Thread(target=kill)
    killer.start()
    disturbed = run_sweep(spec, tmp_path).read().trials()
    killer.join()
    assert killed
    assert heavy
    assert not any(heavy)  # only workers compute: who owns and controls a gang starts without torch
    assert cleaners == []  # Ray Train's own may outlive the gang that it cleans up after
    for stormy, (calm, undisturbed) in zip(disturbed, plainly(spec), strict=True):
        assert stormy.state is TrialState.COMPLETE, stormy.error
        assert stormy.params == calm.params
        assert [result.epochs for result in stormy.results] == [epochs for epochs, _ in undisturbed]
        for ours, (_, theirs) in zip(stormy.results, undisturbed, strict=True):
            assert ours.metrics == pytest.approx(theirs, abs=1e-4)
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 30)
    wait_for(lambda: set(alive("")) <= before, 30, "no actor left")


@pytest.mark.parametrize("sign", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_stops_tidily_and_resume_goes_on(
    make_spec: Make,
    ray_nodes: Sequence[Mapping[str, float]],
    tmp_path: Path,
    cache: Path,
    sign: signal.Signals,
) -> None:
    """It goes on where it may as well be another cluster's work."""
    spec = make_spec(training=TRAINING, search=SEARCH, tracking={"wandb": {"mode": "offline"}})
    file = tmp_path / "small.yaml"
    file.write_text(to_yaml(spec))
    storage = tmp_path / "runs"
    mark = new_mark("ctrl-c")
    environment = {**os.environ, MARK: mark, "THAW_CACHE": str(cache)}
    command = [sys.executable, str(REPOSITORY / "launch.py")]
    started_at = time.time()
    running = subprocess.Popen(
        [*command, "run", str(file), "--storage", str(storage)],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: evaluations(storage / "small" / "study.journal") >= 2, 120)
    began = time.monotonic()
    if sign == signal.SIGINT:  # as a terminal sends it: to the whole foreground group
        os.killpg(running.pid, sign)
    else:
        running.send_signal(sign)
    output, _ = running.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert running.returncode == 130, output
    assert "Traceback" not in output
    assert "resume small" in output
    wait_for(lambda: not marked(mark), 5)
    before = find("small", storage).read().trials()
    assert before[0].results
    stored = entries(cache, started_at)
    assert stored
    assert find("small", storage).read().best() is not None

    address = ray.get_runtime_context().gcs_address
    resumed = subprocess.run(
        [*command, "resume", "small", "--storage", str(storage), "--address", address],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    after = find("small", storage).read().trials()
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 2
    assert after[0].params == before[0].params
    # Checkpoints may be gone by now, where later ones are better; what was measured stays.
    kept = [(result.epochs, result.metrics) for result in before[0].results]
    assert [(result.epochs, result.metrics) for result in after[0].results][: len(kept)] == kept
    assert [result.epochs for result in after[0].results] == [0.5, 1.0, 1.5, 2.0]
    assert (storage / "small" / "best" / "model.safetensors").exists()
    # What was stored is what the next driver's trials read: nothing was made anew.
    later = entries(cache, started_at)
    assert {path: later[path][0] for path in stored} == {path: made for path, (made, _) in stored.items()}
    again = [path for path, (_, read) in stored.items() if later[path][1] > read]
    assert len(again) >= 2  # for training and for evaluation
