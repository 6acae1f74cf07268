"""Virtual time: what stands for a trial, and that a sweep that was cut off goes on to the same end."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from search.records import TrialRecord, TrialState
from search.virtual import Rows, Table, normalised_regret
from tests.search import killable

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


def sweep(directory: Path, *, cut_after: int | None = None) -> list[TrialRecord]:
    """A sweep of twelve trials on one worker, taken up again after so many evaluations."""
    left = math.inf if cut_after is None else cut_after

    def on_evaluation() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise Killed

    while True:
        with suppress(Killed):
            return killable.sweep(
                directory, "stop", seed=3, trials=12, curves=CURVES[0], on_evaluation=on_evaluation
            )


@pytest.mark.parametrize("cut_after", [0, 1, 30, 60])
def test_a_sweep_that_was_cut_off_ends_the_same(tmp_path: Path, table: Table, cut_after: int) -> None:
    whole = sweep(tmp_path / "a")
    assert [t.number for t in whole] == list(range(12))
    assert any(t.state is TrialState.COMPLETE and t.epochs == table.epochs for t in whole)
    assert sweep(tmp_path / "b", cut_after=cut_after) == whole
