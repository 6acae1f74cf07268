"""The resource `compute`: rungs by the arithmetic that a trial's thawed blocks really take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search.records import TrialRecord
from search.schedulers.rungs import Cost
from training.config import TrialConfig
from training.cost import compute
from training.schedules import Phase, phases


def compute_taken(config_of: Callable[[TrialRecord], TrialConfig], num_blocks: int) -> Cost:
    """What a trial takes up to so many epochs, in epochs of full training of its model.

    Args:
        config_of: a trial's settings, which its parameters and its seed decide; asked once a trial.
    """
    courses: dict[int, tuple[Mapping[str, Any], Sequence[Phase]]] = {}

    def taken(trial: TrialRecord, epochs: float) -> float:
        known = courses.get(trial.number)
        if known is None or known[0] != trial.params:  # a forecast draws the same numbers again
            config = config_of(trial)
            training = config.training
            planned = phases(training.unfreezing, num_blocks, training.epochs, config.seed)
            known = courses[trial.number] = (trial.params, planned)
        return compute(known[1], num_blocks, epochs)

    return taken
