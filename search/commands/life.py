"""Commands that steer a sweep, from any shell that reaches its directory, whether it runs or not."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.commands.options import Name, Storage, found, where

if TYPE_CHECKING:
    from search.inbox import Command
    from search.sweep import Sweep

_PATIENCE_S = 15.0

Trial = Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.")]


def pause(name: Name, storage: Storage = "./runs") -> None:
    """Hold a sweep's trials at their next evaluation; `resume` goes on with them."""
    _send(found(name, storage), "pause", reason="thaw pause")


def stop(name: Name, storage: Storage = "./runs") -> None:
    """End a sweep tidily: no new trial starts, running ones finish."""
    _send(found(name, storage), "stop", reason="thaw stop")


def cancel(name: Name, storage: Storage = "./runs") -> None:
    """End a sweep at once; `resume` goes on from the newest checkpoints."""
    _send(found(name, storage), "cancel", reason="thaw cancel")


def extend(
    name: Name,
    trials: Annotated[str, typer.Option("--trials", metavar="+N", help="How many more trials to run.")],
    storage: Storage = "./runs",
) -> None:
    """Give a sweep more trials, also one that has ended."""
    if not re.fullmatch(r"\+?[0-9]{1,6}", trials):
        raise ValueError(f"--trials: must be +N, such as +8, got {trials!r}")
    _send(found(name, storage), "extend", trials=int(trials))


def enqueue(
    name: Name,
    values: Annotated[
        list[str],
        typer.Argument(metavar="PATH=VALUE...", help="Parameters of the trial; the others are drawn."),
    ],
    storage: Storage = "./runs",
) -> None:
    """Add a trial with parameters of your choice, to run before any other."""
    from search.picking import assignments

    _send(found(name, storage), "enqueue", values=assignments(values), note="enqueued")


def stop_trial(name: Name, trial: Trial, storage: Storage = "./runs") -> None:
    """End one trial of a sweep at its next evaluation."""
    _send(found(name, storage), "stop-trial", trial=trial, reason="thaw stop-trial")


def clone(
    name: Name,
    trial: Trial,
    changes: Annotated[
        list[str], typer.Option("--set", metavar="PATH=VALUE", help="A parameter to change; repeatable.")
    ] = [],  # noqa: B006  (typer copies it)
    storage: Storage = "./runs",
) -> None:
    """Add a trial like another one, but for some parameters, to run before any other."""
    from search import steering
    from search.picking import assignments

    sweep = found(name, storage)
    values = steering.clone_of(sweep.helm(), trial, assignments(changes))
    _send(sweep, "enqueue", values=values, note=f"clone of trial {trial}")


def go_on(name: str, storage: str) -> None:
    """Let a sweep whose driver is at work go on, where it was to end."""
    _send(found(name, storage), "resume", reason="thaw resume")


def _send(sweep: Sweep, kind: Any, **arguments: Any) -> None:
    """Send a command, wait for its answer, and print that."""
    from search import inbox, steering
    from search.delivery import deliver
    from search.life import SweepState

    command: Command = inbox.new(kind, **arguments)
    steering.check(sweep.helm(), command)
    outcome = deliver(sweep, command, patience_s=_PATIENCE_S)
    if outcome is None:
        print("sent; the sweep's driver has not answered yet, and obeys as soon as it does")
        return
    if outcome.startswith("refused: "):
        print(f"error: {outcome.removeprefix('refused: ')}", file=sys.stderr)
        raise typer.Exit(1)
    print(outcome)
    if sweep.state() not in (SweepState.RUNNING, SweepState.STOPPING, SweepState.FINISHED):
        print(f"go on with: thaw resume {sweep.spec.name}{where(sweep.directory.parent)}")
