"""Commands that show what sweeps are doing."""

from __future__ import annotations

import sys

from search.commands.options import Json, Name, Storage, console, found


def list_(storage: Storage = "./runs", as_json: Json = False) -> None:
    """Show the sweeps there are."""
    from search import mirror
    from search.results import leaderboard, status
    from search.sweep import find, names

    place = mirror.open_storage(storage)
    rows = []
    for name in names(place):
        try:
            rows.append(status.of(find(name, place)))
        except (ValueError, OSError) as error:  # one that is just being made, or that is damaged
            print(error, file=sys.stderr)
    if as_json:
        print(leaderboard.to_json([row.summary() for row in rows]))
    elif rows:
        screen = console()
        screen.print(status.table(rows, width=screen.width))
    else:
        print(f"there is no sweep in {mirror.shown(place)}; start one with `run`")


def status(name: Name, storage: Storage = "./runs", as_json: Json = False) -> None:
    """Show where a sweep is: its state, its trials, its best one, what it has cost."""
    from search.results import leaderboard
    from search.results import status as report

    standing = report.of(found(name, storage))
    if as_json:
        print(leaderboard.to_json(standing.document()))
    else:
        print(standing.text())


def logs(name: str, *, follow: bool, trial: int | None, storage: str, as_json: bool) -> None:
    """Show what a sweep's driver did, or what one trial reported."""
    from search import logbook
    from search.results import leaderboard

    if follow and as_json:
        raise ValueError("--follow and --json: both were given; a document has an end, so choose one")
    sweep = found(name, storage)
    if trial is not None:
        sweep.read().trial(trial)  # there is one
    lines = logbook.lines(sweep, trial=trial, follow=follow)
    if as_json:
        print(leaderboard.to_json(list(lines)))
        return
    for line in lines:
        print(line, flush=True)
