"""No early stopping."""

from __future__ import annotations

from collections.abc import Sequence

from search.records import TrialRecord
from search.schedulers.base import Decision


class Fifo:
    """Every trial trains to its end."""

    def decide(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> Decision:
        """Always CONTINUE."""
        return Decision.CONTINUE

    def next(self, trials: Sequence[TrialRecord], *, more: bool) -> int | None:
        """None: no trial is ever paused."""
        return None
