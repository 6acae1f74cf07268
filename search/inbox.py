"""Commands to a sweep, from any machine that reaches its directory: one small immutable file each.

A command is written whole, is carried out once by whoever drives the sweep, is answered in the ledger
under its id, and is then removed. Where nobody drives the sweep, who sends it carries it out.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from search import mirror

DIRECTORY = "commands"
_MAX_BYTES = 100_000

Kind = Literal["pause", "resume", "stop", "cancel", "extend", "enqueue", "stop-trial"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a sweep is to do."""

    id: str
    """Ids sort in the order in which the commands were given."""
    kind: Kind
    arguments: Mapping[str, Any] = field(default_factory=dict)


def new(kind: Kind, **arguments: Any) -> Command:
    """A command with an id of its own."""
    return Command(id=f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}", kind=kind, arguments=arguments)


class Inbox:
    """The commands of a sweep that have not been carried out."""

    def __init__(self, sweep: Path) -> None:
        """`sweep`: the sweep's directory."""
        self._directory = sweep / DIRECTORY

    def put(self, command: Command) -> None:
        """Add a command, whole or not at all."""
        self._directory.mkdir(exist_ok=True)
        draft = self._directory / f".{command.id}"
        draft.write_text(json.dumps(asdict(command)))
        file = self._directory / f"{command.id}.json"
        os.replace(draft, file)
        mirror.push(file)

    def commands(self) -> list[Command]:
        """Those there are, oldest first; none while out of reach. What is no command is passed over."""
        try:
            mirror.pull_commands(self._directory.parent)
            paths = sorted(self._directory.glob("*.json"))
        except OSError:
            return []
        return [command for command in map(_read, paths) if command is not None]

    def remove(self, command: Command) -> None:
        """Remove a command that has been carried out. One that stays is not carried out again."""
        try:
            file = self._directory / f"{command.id}.json"
            mirror.forget(file)
            file.unlink(missing_ok=True)
        except OSError:
            return


def _read(path: Path) -> Command | None:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        stored = json.loads(path.read_text())
        command = Command(**stored)
    except (OSError, ValueError, TypeError):
        return None
    fits = command.kind in get_args(Kind) and isinstance(command.arguments, dict) and command.id == path.stem
    return command if fits else None
