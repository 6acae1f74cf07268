"""Commands that read a sweep's ledger."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from search.commands.options import Json, Name, Storage, console, found


def trials(
    name: Name,
    storage: Storage = "./runs",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, one line a trial.")] = False,
) -> None:
    """Show a sweep's trials."""
    from search.results import leaderboard

    if as_json and as_csv:
        raise ValueError("--json and --csv: both were given; choose one")
    records, metric = _read(name, storage)
    rows = leaderboard.rows(records, metric.name, metric.goal)
    if as_json:
        print(leaderboard.to_json(rows))
    elif as_csv:
        print(leaderboard.to_csv(rows), end="")
    else:
        screen = console()
        screen.print(leaderboard.table(records, metric.name, metric.goal, title=name, width=screen.width))


def best(
    name: Name,
    storage: Storage = "./runs",
    as_json: Json = False,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="All trials that no other beats in every objective.")
    ] = False,
) -> None:
    """Show a sweep's best trial, or with several objectives its best ones."""
    from search.results import leaderboard

    if pareto:
        _show_pareto(name, storage, as_json)
        return
    records, metric = _read(name, storage)
    if as_json:
        print(leaderboard.to_json(leaderboard.best_row(records, metric.name, metric.goal)))
    else:
        print(leaderboard.best_text(records, metric.name, metric.goal))


def _show_pareto(name: str, storage: str, as_json: bool) -> None:
    from search.results import leaderboard
    from search.results import pareto as view

    study = found(name, storage).read()
    if len(study.objectives) == 1:
        raise ValueError(
            f"--pareto: sweep {name} has one objective, {study.metric}; give others under search.objectives"
        )
    front = study.pareto()
    if as_json:
        print(leaderboard.to_json(view.rows(front, study.objectives)))
        return
    screen = console()
    screen.print(view.table(front, study.objectives, title=name, width=screen.width))


def export(
    name: Name,
    output: Annotated[str, typer.Option("--output", "-o", help="A new directory, or an s3:// or gs:// URI.")],
    trial: Annotated[int | None, typer.Option("--trial", help="The trial; the best one where unset.")] = None,
    storage: Storage = "./runs",
) -> None:
    """Write a trial's best checkpoint as a Hugging Face model directory."""
    from search import mirror
    from search import sweep as sweeps

    sweep = found(name, storage)
    study = sweep.read()
    record = study.best() if trial is None else study.trial(trial)
    if record is None:
        raise ValueError(f"{name}: no trial has a value of {study.metric} yet, so there is nothing to export")
    directory = mirror.open_storage(output, "--output")
    if mirror.place_of(directory) is not None and mirror.names(directory):
        raise ValueError(f"{output}: is there already and not empty; give a new directory")
    sweeps.export(sweep, record, directory)
    mirror.put_directory(directory)
    print(output)


def _read(name: str, storage: str) -> tuple[Any, Any]:
    """A sweep's records and its metric."""
    sweep = found(name, storage)
    return sweep.read().trials(), sweep.spec.search.metric
