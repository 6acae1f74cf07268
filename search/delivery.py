"""How a command reaches a sweep: by its driver, or by the sender where nobody drives it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from search import mirror
from search.inbox import Command, Inbox
from search.presence import Presence, Taken
from search.steering import obey

if TYPE_CHECKING:
    from search.sweep import Sweep

_POLL_S = 0.2


def deliver(sweep: Sweep, command: Command, *, patience_s: float) -> str | None:
    """Send a command and wait for what comes of it; None where the driver does not answer in time."""
    inbox, presence = Inbox(sweep.directory), Presence(sweep.directory)
    inbox.put(command)
    study = sweep.read()
    deadline = time.monotonic() + patience_s
    while True:
        mirror.pull_journal(sweep.ledger)
        outcome = study.outcome(command.id)
        if outcome is not None:
            return outcome
        if time.monotonic() > deadline:
            return None
        try:
            if presence.driver() is None:
                with presence.claimed():
                    obey_all(sweep, inbox)
                continue
        except Taken:  # one has just started, or has not been seen by all yet
            pass
        time.sleep(_POLL_S)


def obey_all(sweep: Sweep, inbox: Inbox) -> None:
    """Carry out what waits in the inbox of a sweep that nobody else drives."""
    for command in inbox.commands():
        obey(sweep.helm(), command)
        inbox.remove(command)
