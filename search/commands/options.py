"""Arguments and small helpers that commands share."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from search.sweep import Sweep

Storage = Annotated[
    str,
    typer.Option(
        "--storage",
        help="What holds the sweeps: a directory, or an s3:// or gs:// URI.",
        envvar="THAW_STORAGE",
    ),
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a setting of the file; repeatable.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="A Ray cluster; without one, a local one starts and stops with the sweep."
    ),
]
Name = Annotated[str, typer.Argument(help="The sweep's name.")]
SweepFile = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep file, or a bundled name such as quickstart.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def console() -> Console:
    """Where tables are drawn."""
    from rich.console import Console

    return Console()


def found(name: str, storage: str) -> Sweep:
    """The sweep called `name` in `--storage`."""
    from search.mirror import open_storage
    from search.sweep import find

    return find(name, open_storage(storage))


def where(place: Path) -> str:
    """The options that lead a next command to `place`, ready to be pasted.

    Those that somebody elsewhere has reached it by, who then reads this, are in THAW_REACHED_BY.
    """
    from search.mirror import shown

    if "THAW_REACHED_BY" in os.environ:
        return f" {os.environ['THAW_REACHED_BY']}"
    return "" if place == Path("runs").absolute() else f" --storage {shlex.quote(shown(place))}"
