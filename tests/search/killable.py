"""A sweep in virtual time on recorded curves, which goes on from its ledger: to be killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from search.config import MetricConfig, SamplerConfig, SchedulerConfig
from search.database import Database
from search.driver import Driver
from search.records import TrialRecord
from search.schedulers import make_scheduler
from search.study import Study
from search.trackers import NoTracker
from search.virtual import Table, run
from training.config import TrainingConfig
from training.reporter import Evaluation

CURVES = Path(__file__).parents[1] / "curves" / "taskset-imdb.npz"
TRIALS = 16


def sweep(
    directory: Path,
    mode: str,
    seed: int,
    place: Path | Database | None = None,
    trials: int = TRIALS,
    *,
    curves: Path = CURVES,
    workers: int = 1,
    patience_s: float = 0.0,
    on_evaluation: Callable[[], None] = lambda: None,
) -> list[TrialRecord]:
    """Runs a sweep, or what is left of it; every evaluation leaves a line in `trained`.

    Args:
        on_evaluation: called at each, before it is entered.
    """
    table = Table.load(curves)
    directory.mkdir(exist_ok=True)
    study = Study.open(
        place or directory / "study.journal",
        name="s",
        suggest=table.suggest,
        metric=table.metric,
        goal=table.goal,
        sampler=SamplerConfig(type="tpe", startup_trials=4),
        seed=seed,
        patience_s=patience_s,
    )
    driver = Driver(
        study=study,
        scheduler=make_scheduler(
            SchedulerConfig(type="asha", mode=mode),  # type: ignore[arg-type]
            MetricConfig(name=table.metric, goal=table.goal),
            TrainingConfig(epochs=table.epochs, evaluations_per_epoch=1),
        ),
        tracker=NoTracker(),
        trials=trials,
        keep=3,
        directory=directory,
        sweep_id="s",
        describe=lambda record: {},
    )
    trained = os.open(directory / "trained", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note(number: int, evaluation: Evaluation) -> None:
        os.write(trained, f"{number} {evaluation.epochs:g}\n".encode())
        on_evaluation()

    try:
        run(driver, table, workers=workers, on_evaluation=note)
        driver.finish()
    finally:
        os.close(trained)
    return study.trials()
