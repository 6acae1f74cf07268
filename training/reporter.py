"""What a trial tells while it trains, and the one thing it asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Verdict(StrEnum):
    """What becomes of a trial."""

    CONTINUE = "continue"
    STOP = "stop"
    LEAVE = "leave"
    """Write a checkpoint and leave: the machine is about to go, and the trial goes on elsewhere."""


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
    """`train/loss`, the highest and the lowest learning rate, number of thawed blocks."""


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
    costs: Mapping[str, float] = field(default_factory=dict)
    """`cost/parameters`: how many the trial's phases thaw; with `measure_latency` `cost/latency`."""


class Reporter(Protocol):
    """Where a trial's news goes. Called on rank 0 only."""

    def started(self, course: Course) -> None:
        """The trial is about to take its first step."""

    def progressed(self, progress: Progress) -> Verdict | None:
        """Some steps were taken; says LEAVE where it is time to. Must not wait long."""

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        """An evaluation is done, and its checkpoint is durable; says whether to go on: CONTINUE or STOP.

        Training may have gone on meanwhile: steps since the evaluation are lost where it is to stop.
        """
        ...
