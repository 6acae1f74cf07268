"""Commands that show what sweeps are doing."""

from __future__ import annotations

import sys

from search.commands.options import Json, Name, Storage, console


def list_(storage: Storage = "./runs", as_json: Json = False) -> None:
    """Show the sweeps there are."""
    from search import preflight
    from search.results import leaderboard, status
    from search.sweep import find, names

    place = preflight.local_storage(storage)
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
        print(f"there is no sweep in {place}; start one with `run`")


def status(name: Name, storage: Storage = "./runs", as_json: Json = False) -> None:
    """Show where a sweep is: its state, its trials, its best one, what it has cost."""
    from search import preflight
    from search.results import leaderboard
    from search.results import status as report
    from search.sweep import find

    found = report.of(find(name, preflight.local_storage(storage)))
    if as_json:
        print(leaderboard.to_json(found.document()))
    else:
        print(found.text())


def logs(name: str, *, follow: bool, trial: int | None, storage: str, as_json: bool) -> None:
    """Show what a sweep's driver did, or what one trial reported."""
    from search import logbook, preflight
    from search.results import leaderboard
    from search.sweep import find

    if follow and as_json:
        raise ValueError("--follow and --json: both were given; a document has an end, so choose one")
    sweep = find(name, preflight.local_storage(storage))
    if trial is not None:
        sweep.read().trial(trial)  # there is one
    lines = logbook.lines(sweep, trial=trial, follow=follow)
    if as_json:
        print(leaderboard.to_json(list(lines)))
        return
    for line in lines:
        print(line, flush=True)
