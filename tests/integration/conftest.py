"""Sweeps on a real Ray cluster, shared by all tests of a session."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cluster.connect import connected
from search import preflight, session
from search import sweep as sweeps
from search.progress import Progress
from search.spec import SweepSpec, parse
from search.study import TrialRecord
from search.sweep import Sweep
from tests.cli import Thaw, caller
from tests.conftest import MODEL
from tests.holders import holders, is_free, stacks
from tests.processes import wait_for
from tests.training.conftest import Recorder, muster
from training.gang.orphans import reap
from training.loop import train
from training.workspace import Workspace

Course = list[tuple[float, dict[str, float]]]
"""Epochs and metrics of a trial's evaluations."""


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Thaw:
    """The command line; a Ray that is started fails the test."""

    def started(address: str | None) -> NoReturn:
        raise AssertionError(f"Ray was started at {address}")

    monkeypatch.setattr("cluster.connect.connected", started)
    monkeypatch.chdir(tmp_path)
    return caller(monkeypatch, capsys)


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Sequence[Mapping[str, float]]]:
    """The nodes of the session's Ray cluster, as the command line starts it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with connected(None) as nodes:
        yield nodes


@pytest.fixture
def idle_nodes(ray_nodes: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """Those nodes, once the sweeps of earlier tests have left them: for tests that need all of them."""

    def idle() -> bool:
        reap()  # as every driver does
        return is_free()

    try:
        wait_for(idle, 60, "a free cluster")
    except TimeoutError as error:
        raise TimeoutError("\n".join([str(error), *holders()])) from None
    return ray_nodes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show what Ray's processes were at when a test hung."""
    report = yield
    if call.excinfo is not None and "pytest-timeout" in str(call.excinfo.value):
        report.sections.append(("Ray's processes", stacks()))
        with contextlib.suppress(Exception):  # none is connected, or it is what hangs
            report.sections.append(("Ray's resources", "\n".join(holders())))
    return report


@pytest.fixture(scope="session")
def make_spec(sentences: Path) -> Callable[..., SweepSpec]:
    """Builds a small sweep over the real model and real sentences; keywords replace whole sections."""

    def make(**sections: Any) -> SweepSpec:
        raw: dict[str, Any] = {
            "name": "small",
            "model": {"name": MODEL},
            "task": {"max_length": 32},
            "data": {
                "train": str(sentences / "train.jsonl"),
                "validation": str(sentences / "validation.jsonl"),
            },
            "training": {"epochs": 1, "evaluations_per_epoch": 2, "batch_size": 16},
            "parameters": {
                "learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-3},
                "unfreezing.schedule": {"values": ["head", "top", "gradual"]},
                "unfreezing.depth": {"values": [1, 2], "when": {"unfreezing.schedule": ["top", "gradual"]}},
            },
            "search": {
                "metric": {"name": "eval/accuracy", "goal": "maximize"},
                "sampler": "random",
                "scheduler": "none",
                "trials": 3,
                "seed": 1,
            },
            "resources": {"workers": 1, "max_concurrent": 1},
            "tracking": {"wandb": None},
        }
        return parse(raw | sections)

    return make


@pytest.fixture(scope="session")
def run_sweep(ray_nodes: Sequence[Mapping[str, float]]) -> Callable[[SweepSpec, Path], Sweep]:
    """Runs a sweep on the session's cluster to its end."""

    def run(spec: SweepSpec, storage: Path) -> Sweep:
        made = sweeps.create(spec, storage)
        session.run(made, facts=preflight.check(spec), fits=2, gpus_per_worker=0.0, progress=Progress())
        return made

    return run


def course(trial: TrialRecord) -> Course:
    return [(result.epochs, dict(result.metrics)) for result in trial.results]


@pytest.fixture(scope="session")
def plainly(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[SweepSpec], list[tuple[TrialRecord, Course]]]:
    """What the trials of a sweep are and come to with neither Ray nor faults: asked for one after the
    other (by a sampler that learns nothing), and trained in this process."""
    workspace = Workspace(muster())

    def run(spec: SweepSpec) -> list[tuple[TrialRecord, Course]]:
        made = sweeps.create(spec, tmp_path_factory.mktemp("plainly"))
        study = made.open()
        trials = [study.ask() for _ in range(spec.search.trials)]
        return [(trial, told_of(made, trial)) for trial in trials]

    def told_of(made: Sweep, trial: TrialRecord) -> Course:
        told = Recorder()
        directory = made.trial_directory(trial.number)
        train(made.trial_config(trial), workspace=workspace, reporter=told, directory=directory)
        return [(evaluation.epochs, dict(evaluation.metrics)) for evaluation in told.evaluations]

    return run
