"""The command `doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.doctor.checks import Verdict
    from cluster.doctor.facts import Brought

Bring = Callable[[str | None, list[str], str], "AbstractContextManager[Brought]"]
_STYLES = {"green": "green", "yellow": "yellow", "red": "bold red", "skipped": "dim"}


def doctor_command(bring: Bring) -> Callable[..., None]:
    """The command `doctor`.

    Args:
        bring: what is to be tried for a sweep (or none), with overrides, and a storage.
    """

    def doctor(
        sweep: Annotated[
            str | None, typer.Argument(metavar="[SWEEP]", help="A sweep file, or a bundled name.")
        ] = None,
        overrides: Annotated[
            list[str],
            typer.Option("--set", metavar="PATH=VALUE", help="Override a setting of the file; repeatable."),
        ] = [],  # noqa: B006  (typer copies it)
        storage: Annotated[
            str, typer.Option("--storage", help="What holds the sweeps.", envvar="THAW_STORAGE")
        ] = "./runs",
        address: Annotated[
            str | None, typer.Option("--address", help="A Ray cluster; else this machine.")
        ] = None,
        as_json: Annotated[
            bool, typer.Option("--json", help="One JSON document on standard output.")
        ] = False,
    ) -> None:
        """Check whether a cluster can run sweeps, and say how to mend what is wrong."""
        from cluster.connect import connected
        from cluster.doctor.checks import as_json as document
        from cluster.doctor.checks import examine

        with bring(sweep, overrides, storage) as brought, connected(address):
            from cluster.doctor.gather import gather  # Ray comes in here

            verdicts = examine(gather(brought))
        said = document(verdicts)
        if as_json:
            print(json.dumps(said, indent=2))
        else:
            _show(verdicts)
        if not said["ok"]:
            raise typer.Exit(1)

    return doctor


def _show(verdicts: dict[str, Verdict]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("check", "", "found"):
        table.add_column(column, overflow="fold")
    for name, verdict in verdicts.items():
        found = Text(verdict.said)
        if verdict.fix:
            found.append(f"\nfix: {verdict.fix}", style="bold")
        table.add_row(name, Text(verdict.health.value, style=_STYLES[verdict.health.value]), found)
    Console().print(table)
