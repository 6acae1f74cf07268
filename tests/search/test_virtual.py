"""Virtual time: what stands for a trial, and that a sweep that was cut off goes on to the same end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search import virtual
from search.config import MetricConfig, SamplerConfig, SchedulerConfig
from search.driver import Driver
from search.records import TrialRecord, TrialState
from search.schedulers import make_scheduler
from search.study import Study
from search.trackers.base import NoTracker
from search.virtual import Rows, Table, normalised_regret
from training.config import TrainingConfig

CURVES = sorted((Path(__file__).parents[1] / "curves").glob("*.npz"))


@pytest.fixture
def table() -> Table:
    return Table.load(CURVES[0])


def record(table: Table, number: int, config: np.ndarray) -> TrialRecord:
    params = dict(zip(table.hp_names, map(float, config), strict=True))
    return TrialRecord(number=number, state=TrialState.RUNNING, params=params, seed=0)


@pytest.mark.parametrize("path", CURVES, ids=lambda path: path.stem)
def test_bundled_tables(path: Path) -> None:
    table = Table.load(path)
    assert table.points.min() == 0
    assert table.points.max() == pytest.approx(1)
    assert table.curves.shape == (240, table.epochs)
    final = table.curves[:, -1]
    best = final.max() if table.goal == "maximize" else final.min()
    assert normalised_regret(table, float(best)) < normalised_regret(table, float(np.median(final)))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"t\.npz: not a table of learning curves"):
        Table.load(tmp_path / "t.npz")


def test_the_nearest_configuration_that_no_earlier_trial_has(table: Table) -> None:
    trials = [record(table, i, table.configs[row]) for i, row in enumerate([7, 3, 7])]
    rows = Rows(table)
    assert [rows.of(i, trials) for i in range(2)] == [7, 3]
    second = rows.of(2, trials)
    away = ((table.points - table.points[7]) ** 2).sum(axis=1)
    assert second == np.argsort(away)[1]
    assert Rows(table).of(2, trials) == second


class Killed(Exception):
    pass


def sweep(path: Path, table: Table, mode: str, kill_after: int | None = None) -> list[TrialRecord]:
    """A sweep of twelve trials on one worker, taken up again each time that it is killed."""
    left = [kill_after] if kill_after is not None else []

    def killer() -> Callable[[int, Any], None]:
        count = 0

        def on_evaluation(number: int, evaluation: Any) -> None:
            nonlocal count
            count += 1
            if left and count > left[0]:
                left.pop()
                raise Killed

        return on_evaluation

    while True:
        study = Study.open(
            path / "study.journal",
            name="s",
            suggest=table.suggest,
            metric=table.metric,
            goal=table.goal,
            sampler=SamplerConfig(type="tpe", startup_trials=4),
            seed=3,
        )
        driver = Driver(
            study=study,
            scheduler=make_scheduler(
                SchedulerConfig(type="asha", mode=mode),  # type: ignore[arg-type]
                MetricConfig(name=table.metric, goal=table.goal),
                TrainingConfig(epochs=table.epochs, evaluations_per_epoch=1),
            ),
            tracker=NoTracker(),
            trials=12,
            keep=3,
            directory=path,
            sweep_id="s",
            describe=lambda record: {},
        )
        try:
            virtual.run(driver, table, workers=1, on_evaluation=killer())
            return study.trials()
        except Killed:
            continue


@pytest.mark.parametrize("kill_after", [0, 1, 30, 60])
def test_a_sweep_that_was_cut_off_ends_the_same(tmp_path: Path, table: Table, kill_after: int) -> None:
    whole = sweep(tmp_path / "a", table, "stop")
    assert [t.number for t in whole] == list(range(12))
    assert any(t.state is TrialState.COMPLETE and t.epochs == table.epochs for t in whole)
    assert sweep(tmp_path / "b", table, "stop", kill_after) == whole
