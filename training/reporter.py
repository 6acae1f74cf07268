"""What a trial tells while it trains, and the one thing it asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Verdict(StrEnum):
    """What becomes of a trial after an evaluation."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class PhaseOutline:
    """One phase as planned."""

    name: str
    start_epoch: float
    thawed: str
    """The thawed layers in words: `head + blocks 4-5`."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is known before the first step."""

    phases: tuple[PhaseOutline, ...]
    resumed_step: int
    """Steps that the checkpoint it goes on from had taken; 0 without one."""
    data_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Training since the last progress report."""

    step: int
    examples: int
    epochs: float
    phase: str
    thawed: str
    metrics: Mapping[str, float]
    """`train/loss`, learning rates of the head and of the lowest thawed unit, number of thawed blocks."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation, with the checkpoint that gave it."""

    step: int
    examples: int
    epochs: float
    phase: str
    metrics: Mapping[str, float]
    checkpoint: str
    seconds: float
    """Seconds of training so far, over all processes that worked on the trial."""
    last: bool
    """Whether the trial ends with it."""


class Reporter(Protocol):
    """Where a trial's news goes. Called on rank 0 only."""

    def started(self, course: Course) -> None:
        """The trial is about to take its first step."""

    def progressed(self, progress: Progress) -> None:
        """Some steps were taken. Must not wait."""

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        """An evaluation is done; says whether to go on."""
        ...
