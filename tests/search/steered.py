"""A sweep in its directory, driven without trainers: each trial evaluates as its number says."""

from __future__ import annotations

from search.driver import Driver
from search.records import TrialRecord
from search.schedulers.base import Decision, Scheduler
from search.schedulers.fifo import Fifo
from search.sweep import Sweep
from search.trackers import NoTracker
from tests.search.driving import EPOCHS, METRIC
from training.reporter import Evaluation


def driver_of(sweep: Sweep, scheduler: Scheduler | None = None) -> Driver:
    return Driver(
        study=sweep.open(),
        scheduler=scheduler or Fifo(),
        tracker=NoTracker(),
        trials=sweep.spec.search.trials,
        keep=2,
        directory=sweep.directory,
        sweep_id="id",
        describe=lambda record: {},
    )


def evaluate(driver: Driver, record: TrialRecord, epochs: int) -> Decision:
    return driver.evaluated(
        record.number,
        Evaluation(
            step=epochs,
            examples=epochs,
            epochs=epochs,
            phase="p",
            metrics={METRIC: 0.5 + record.number / 100 + epochs / 1000},
            checkpoint=f"trials/{record.number}/{epochs}",
            seconds=10.0 * epochs,
            last=epochs == EPOCHS,
        ),
    )


def train(driver: Driver, record: TrialRecord) -> TrialRecord:
    for epochs in range(round(record.epochs) + 1, EPOCHS + 1):
        if evaluate(driver, record, epochs) is not Decision.CONTINUE:
            break
    return driver.ended(record.number)


def through(driver: Driver) -> list[TrialRecord]:
    while (record := driver.next_trial()) is not None:
        train(driver, record)
    assert driver.over
    driver.finish()
    return list(driver.records())


def taken(driver: Driver) -> TrialRecord:
    record = driver.next_trial()
    assert record is not None
    return record
