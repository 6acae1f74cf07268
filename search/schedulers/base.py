"""What a scheduler is: the ledger in, a decision out."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from search.records import TrialRecord


class Decision(StrEnum):
    """What becomes of a trial after an evaluation."""

    CONTINUE = "continue"
    PAUSE = "pause"
    """Keep its checkpoint, give its place to another; it may be promoted later."""
    STOP = "stop"


class Scheduler(Protocol):
    """Decides who trains on. Pure: the same records give the same decision, on any machine, ever after.

    Whoever runs trials keeps to this:

    - After each evaluation but a trial's last: `decide`. PAUSE marks the trial as paused in the
      ledger and frees its place; STOP ends it as pruned.
    - Whenever a place is free: `next`. The trial that it names is marked as running and goes on at
      its checkpoint. Where it names none, a new trial is drawn, if the sweep has one.
    - Where it names none and no new trial is to come (`more=False`), wait for the trials that still
      run, and ask again after each evaluation or end.
    - When none runs any more either, the sweep is over: every trial that is still paused is pruned.
    """

    def decide(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> Decision:
        """What becomes of `trial`, whose latest evaluation was just entered.

        `trials` are all trials of the sweep, `trial` among them, as the ledger has them now.
        """
        ...

    def next(self, trials: Sequence[TrialRecord], *, more: bool) -> int | None:
        """The number of the paused trial that goes on now; None where a new one is worth more.

        `more`: whether a new trial could be drawn instead. Without, the best trials are seen to
        their end, so that no sweep ends with half-trained trials only.
        """
        ...
