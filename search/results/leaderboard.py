"""The trials of a sweep, ranked: as JSON rows, CSV, a table, and the best one in words."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from search.records import Goal, TrialRecord, TrialState, best_of, ranked, score
from search.results.text import UNKNOWN, Column, duration, grid, measure, number, short_names

_CUSTOMARY = ("learning_rate", "batch_size", "unfreezing.schedule", "unfreezing.depth")
STATE_STYLES = {
    TrialState.RUNNING: "cyan",
    TrialState.PAUSED: "blue",
    TrialState.PRUNED: "dim",
    TrialState.COMPLETE: "green",
    TrialState.FAILED: "red",
    TrialState.DIVERGED: "yellow",
    TrialState.INFEASIBLE: "yellow",
}


def rows(trials: Sequence[TrialRecord], metric: str, goal: Goal) -> list[dict[str, Any]]:
    """One object a trial, in the order given, fit for strict JSON: what is not a number is null.

    Keys: trial, state, params, value (best value of `metric`), last (latest metrics), epochs, phases
    (name, thawed, start_epoch), seconds, checkpoint (that of the best evaluation that still has
    one), error, gpu_seconds, note (where a trial that was not drawn comes from), decisions (decision,
    epochs, reason).
    """
    return [_row(trial, metric, goal) for trial in trials]


def _row(trial: TrialRecord, metric: str, goal: Goal) -> dict[str, Any]:
    phases = [{"name": p.name, "thawed": p.thawed, "start_epoch": p.start_epoch} for p in trial.phases]
    return {
        "trial": trial.number,
        "state": trial.state.value,
        "params": _strict(trial.params),
        "value": trial.value(metric, goal),
        "last": _strict(trial.last.metrics if trial.last else {}),
        "epochs": trial.epochs,
        "phases": phases,
        "seconds": round(trial.seconds, 3),
        "checkpoint": best_checkpoint(trial, metric, goal),
        "error": trial.error,
        "gpu_seconds": round(trial.gpu_seconds, 3),
        "note": trial.note,
        "decisions": [asdict(ruling) for ruling in trial.rulings],
    }


def best_checkpoint(trial: TrialRecord, metric: str, goal: Goal) -> str | None:
    """The checkpoint of the trial's best evaluation that still has one; None when none has.

    An evaluation without a value comes after all others; of equals the earliest is taken.
    """
    best = max(trial.saved, key=lambda r: score(r.metrics.get(metric), goal), default=None)
    return None if best is None else best.checkpoint


def best_row(trials: Sequence[TrialRecord], metric: str, goal: Goal) -> dict[str, Any] | None:
    """The row of the best trial; None while no trial has a value."""
    best = best_of(trials, metric, goal)
    return None if best is None else _row(best, metric, goal)


def to_json(document: Any) -> str:
    """`rows` or `best_row` as one strict JSON document."""
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)


def to_csv(table_rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows` as CSV with a header: `params` and `last` become columns `params.NAME` and `last.NAME`."""
    flat = [_flatten(row) for row in table_rows]
    head = ["trial", "state", "value", "epochs", "seconds", "gpu_seconds"]
    tail = ["phases", "checkpoint", "error"]
    found = dict.fromkeys(key for row in flat for key in row)
    middle = [key for prefix in ("params.", "last.") for key in found if key.startswith(prefix)]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*head, *middle, *tail], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def table(
    trials: Sequence[TrialRecord],
    metric: str,
    goal: Goal,
    *,
    title: str | None = None,
    width: int | None = None,
) -> Table:
    """The leaderboard for humans, best first; fitted to `width` characters by leaving columns out."""
    best_first = ranked(trials, metric, goal)
    columns = [
        Column(header="trial", cells=[str(t.number) for t in best_first]),
        Column(
            header="state",
            justify="left",
            cells=[Text(t.state, style=STATE_STYLES[t.state]) for t in best_first],
        ),
        Column(header=metric, cells=[measure(t.value(metric, goal)) for t in best_first]),
        Column(header="epochs", cells=[number(t.epochs) for t in best_first], drop=1),
        *parameter_columns(best_first),
        Column(header="time", cells=[time_text(t) for t in best_first], drop=11),
        *error_columns(best_first),
    ]
    return grid(columns, width=width, title=title)


def parameter_columns(
    trials: Sequence[TrialRecord], among: Sequence[TrialRecord] | None = None
) -> list[Column]:
    """A column for each parameter that one of `among` (default: `trials`) has, the customary ones first."""
    found = dict.fromkeys(key for trial in among or trials for key in trial.params)
    first = [path for path in _CUSTOMARY if path in found]
    paths = [*first, *(path for path in found if path not in first)]
    short = short_names(paths)
    return [
        # Later ones go first where room is short.
        Column(
            header=short[path],
            cells=[number(t.params.get(path)) for t in trials],
            drop=5 + i if i < 4 else 20 + i,
        )
        for i, path in enumerate(paths)
    ]


def error_columns(trials: Sequence[TrialRecord]) -> list[Column]:
    """One column with the errors, where there are any."""
    if not any(trial.error for trial in trials):
        return []
    cells = [Text(trial.error or "", style="red") for trial in trials]
    return [Column(header="error", justify="left", cells=cells, elastic=True, drop=4)]


def time_text(trial: TrialRecord) -> str:
    """Training time up to the latest evaluation."""
    return duration(trial.seconds) if trial.results else UNKNOWN


def best_text(trials: Sequence[TrialRecord], metric: str, goal: Goal) -> str:
    """The best trial in a few lines."""
    best = best_row(trials, metric, goal)
    if best is None:
        return f"No trial has a value of {metric} yet."
    phases = ", ".join(f"{p['thawed']} from epoch {number(p['start_epoch'])}" for p in best["phases"])
    lines = {
        "trial": f"{best['trial']} ({best['state']})",
        metric: measure(best["value"]),
        "epochs": number(best["epochs"]),
        "time": duration(best["seconds"]),
        **{path: number(value) for path, value in best["params"].items()},
        "thawed": phases or UNKNOWN,
        "checkpoint": best["checkpoint"] or UNKNOWN,
    }
    width = max(map(len, lines))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    nested = ("params", "last", "phases", "decisions", "note")
    flat = {key: value for key, value in row.items() if key not in nested}
    for group in ("params", "last"):
        for key, value in row[group].items():
            flat[f"{group}.{key}"] = json.dumps(value) if isinstance(value, (list, dict)) else value
    flat["phases"] = "; ".join(f"{p['name']}@{number(p['start_epoch'])}" for p in row["phases"])
    return flat


def _strict(value: Any) -> Any:
    """`value` with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
