"""What becomes of a sweep: what is wanted of it, and the state that this makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from search.records import TrialRecord


class Wanted(StrEnum):
    """What is to become of a sweep. All but RUN end its driver; RUN afterwards goes on with what is left."""

    RUN = "run"
    PAUSE = "pause"
    """Running trials are held at their next evaluation and go on first, later."""
    DRAIN = "drain"
    """No new trial starts; running ones finish."""
    HALT = "halt"
    """No new trial starts; running ones end as pruned at their next evaluation."""
    CANCEL = "cancel"
    """At once; what ran goes on from its newest checkpoint, should the sweep be resumed."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """What is wanted of a sweep, and why."""

    wanted: Wanted = Wanted.RUN
    reason: str = ""
    """For people: `thaw stop`, a budget that is spent."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "wanted", Wanted(self.wanted))  # as the ledger has it: a word


class SweepState(StrEnum):
    """Where a sweep is in its life."""

    RUNNING = "running"
    STOPPING = "stopping"
    """A driver is at work, and on its way to one of the states below."""
    INTERRUPTED = "interrupted"
    """Trials are left and no driver is at work, though nobody wanted that."""
    PAUSED = "paused"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FINISHED = "finished"


_ENDED = {
    Wanted.RUN: SweepState.INTERRUPTED,
    Wanted.PAUSE: SweepState.PAUSED,
    Wanted.DRAIN: SweepState.STOPPED,
    Wanted.HALT: SweepState.STOPPED,
    Wanted.CANCEL: SweepState.CANCELLED,
}


def state_of(life: Life, trials: Iterable[TrialRecord], target: int, *, driven: bool) -> SweepState:
    """Where a sweep is, of its ledger and of whether a driver is at work on it."""
    if driven:
        return SweepState.RUNNING if life.wanted is Wanted.RUN else SweepState.STOPPING
    trials = list(trials)
    if len(trials) >= target and all(trial.state.finished for trial in trials):
        return SweepState.FINISHED
    return _ENDED[life.wanted]
