"""Ray Tune's scheduler over the driver: enters each evaluation, hands on the decision."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.driver import Driver
from search.schedulers.base import Decision

_TUNE = {
    Decision.CONTINUE: TrialScheduler.CONTINUE,
    Decision.PAUSE: TrialScheduler.PAUSE,
    Decision.STOP: TrialScheduler.STOP,
}


class TuneScheduler(FIFOScheduler):
    """Starts trials in the searcher's order and stops those that the sweep's scheduler stops."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it runs, and must not go on from that."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Enter the evaluation in `result`, if there is one; the decision in Tune's terms."""
        evaluation = result.get("evaluation")
        if evaluation is None:
            return str(TrialScheduler.CONTINUE)
        decision = self._driver.evaluated(trial.config["order"].trial, evaluation)
        return str(_TUNE[decision])
