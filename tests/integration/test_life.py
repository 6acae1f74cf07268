"""Two sweeps on one cluster, each with a driver of its own, steered from outside."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from search.loading import to_yaml
from search.records import Result, TrialRecord, TrialState
from search.spec import SweepSpec
from search.sweep import find
from tests.conftest import REPOSITORY
from tests.integration.test_faults import evaluations, wait_for

Make = Callable[..., SweepSpec]
_PATIENCE_S = 600  # on a machine that does much else
COMMAND = [sys.executable, str(REPOSITORY / "launch.py")]


def search(trials: int) -> dict[str, Any]:
    return {
        "metric": {"name": "eval/loss", "goal": "minimize"},
        "sampler": "random",
        "scheduler": "none",
        "trials": trials,
        "default_points": False,
    }


class Shell:
    """A shell beside the cluster of the session."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self.directory = directory
        self.storage = directory / "runs"
        self.address = ray.get_runtime_context().gcs_address
        self.started: list[subprocess.Popen[str]] = []
        self.environment = {**os.environ, "THAW_CACHE": str(cache), "THAW_STORAGE": str(self.storage)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        self.started.append(
            subprocess.Popen(
                [*COMMAND, *arguments, "--address", self.address],
                env=self.environment,
                cwd=self.directory,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return self.started[-1]

    def run(self, spec: SweepSpec) -> subprocess.Popen[str]:
        file = self.directory / f"{spec.name}.yaml"
        file.write_text(to_yaml(spec))
        return self.start("run", str(file))

    def say(self, *arguments: str) -> str:
        ended = subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def begun(self, name: str, count: int, driver: subprocess.Popen[str]) -> None:
        """Waits until a sweep has so many evaluations."""

        def there() -> bool:
            assert driver.poll() is None, driver.stdout and driver.stdout.read()
            return evaluations(self.storage / name / "study.journal") >= count

        wait_for(there, _PATIENCE_S)


def ended(driver: subprocess.Popen[str], code: int) -> str:
    output, _ = driver.communicate(timeout=_PATIENCE_S)
    assert driver.returncode == code, output
    assert "Traceback" not in output
    return output


@pytest.fixture
def shell(ray_nodes: Sequence[Mapping[str, float]], tmp_path: Path, cache: Path) -> Iterator[Shell]:
    made = Shell(tmp_path, cache)
    yield made
    for process in made.started:  # of a test that failed
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_two_sweeps_on_one_cluster_one_of_them_killed_three_times(make_spec: Make, shell: Shell) -> None:
    """Same file, two names: what one trains undisturbed is what the other must come to."""
    training = {"epochs": 2, "evaluations_per_epoch": 2, "batch_size": 16}
    sampler = {"type": "tpe", "startup_trials": 1}
    spec = make_spec(name="a", training=training, search=search(3) | {"sampler": sampler})
    stormy, calm = shell.run(spec), shell.run(spec.model_copy(update={"name": "b"}))
    rng = random.Random(int(time.time()))
    before: list[list[Result]] = []
    for moment in (rng.randint(1, 3), rng.randint(4, 7), rng.randint(8, 10)):
        shell.begun("a", moment, stormy)
        time.sleep(rng.uniform(0, 1.5))
        stormy.kill()
        assert stormy.wait() == -9
        killed = find("a", shell.storage).read().trials()
        # Nothing that was measured is measured again: its training time would be another.
        for earlier, later in zip(before, courses(killed), strict=False):
            assert later[: len(earlier)] == earlier
        before = courses(killed)
        stormy = shell.start("resume", "a")
    ended(stormy, 0)
    ended(calm, 0)
    found, expected = (find(name, shell.storage).read().trials() for name in "ab")
    assert [t.state for t in found] == [TrialState.COMPLETE] * 3
    assert [t.params for t in found] == [t.params for t in expected]
    for one, other in zip(found, expected, strict=True):
        assert [r.epochs for r in one.results] == [r.epochs for r in other.results] == [0.5, 1.0, 1.5, 2.0]
        for ours, theirs in zip(one.results, other.results, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-4)
        assert [r.seconds for r in one.results] == sorted(r.seconds for r in one.results)


@pytest.mark.slow
def test_pause_resume_and_cancel(make_spec: Make, shell: Shell) -> None:
    # Long enough for what is said meanwhile; it is not trained to its end.
    training = {"epochs": 40, "evaluations_per_epoch": 4, "batch_size": 16}
    first = shell.run(make_spec(name="c", training=training, search=search(2)))
    shell.begun("c", 1, first)
    assert shell.say("enqueue", "c", "unfreezing.schedule=head", "learning_rate=5e-4").startswith("trial 1")
    assert shell.say("extend", "c", "--trials", "+1") == "the sweep is to have 4 trials now\n"
    assert shell.say("pause", "c") == "running trials are held at their next evaluation\n"
    assert "paused; go on with: thaw resume c" in ended(first, 130)
    (held,) = find("c", shell.storage).read().trials()
    assert held.state is TrialState.PAUSED
    assert json.loads(shell.say("status", "c", "--json"))["state"] == "paused"

    second = shell.start("resume", "c")
    shell.begun("c", len(held.results) + 1, second)
    assert shell.say("cancel", "c").startswith("the sweep ends at once")
    assert "cancelled; go on with: thaw resume c" in ended(second, 130)
    (after,) = find("c", shell.storage).read().trials()
    assert after.state is TrialState.PAUSED
    assert after.held
    # What was measured before stands as it was: the trial went on from its checkpoint.
    assert courses([after])[0][: len(held.results)] == courses([held])[0]
    (row,) = json.loads(shell.say("list", "--json"))
    assert (row["name"], row["state"], row["target"]) == ("c", "cancelled", 4)
    assert "trial 0 goes on" in shell.say("logs", "c")


def courses(trials: Sequence[TrialRecord]) -> list[list[Result]]:
    """Results without the names of checkpoints, which come and go."""
    return [[replace(r, checkpoint=None) for r in trial.results] for trial in trials]
