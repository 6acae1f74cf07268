"""A driver for the tests of this folder, and the tracker that it tells."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from search.config import SamplerConfig
from search.driver import Driver
from search.schedulers import Scheduler
from search.schedulers.fifo import Fifo
from search.space import suggest
from search.study import Study
from search.trackers import Tracker
from tests.search.driving import METRIC, SPACE, Make, Recorder


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
