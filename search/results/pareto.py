"""The trials that no other beats in all objectives: as JSON rows and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from search.objectives import Objective, values_of
from search.records import TrialRecord
from search.results import leaderboard
from search.results.text import Column, grid, measure, number


def rows(front: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """The leaderboard's rows, with `values`: of each objective by its name."""
    first = objectives[0]
    listed = leaderboard.rows(front, first.name, first.goal)
    return [
        {**row, "values": dict(zip((o.name for o in objectives), _values(trial, objectives), strict=True))}
        for row, trial in zip(listed, front, strict=True)
    ]


def table(
    front: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    title: str | None = None,
    width: int | None = None,
) -> Table:
    """The front for people, the best by the first objective first; fitted to `width` characters."""
    values = [_values(trial, objectives) for trial in front]
    columns = [
        Column(header="trial", cells=[str(trial.number) for trial in front]),
        *(
            Column(header=objective.name, cells=[_shown(objective, of[at]) for of in values])
            for at, objective in enumerate(objectives)
        ),
        *leaderboard.parameter_columns(front),
    ]
    return grid(columns, width=width, title=title)


def _shown(objective: Objective, value: float) -> str:
    return number(value) if objective.name.startswith("cost/") else measure(value)


def _values(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    values = values_of(trial, objectives)
    assert values is not None, "a front has values"
    return values
