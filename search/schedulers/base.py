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
    """Decides who trains on. Pure: the same records give the same decision, on any machine, ever after."""

    def decide(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> Decision:
        """What becomes of `trial`, whose latest evaluation was just entered.

        `trials` are all trials of the sweep, `trial` among them, as the ledger has them now.
        """
        ...
