"""Ray Tune's scheduler over the driver: enters each evaluation, hands on the decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.driver import Driver
from search.schedulers.base import Decision

_TUNE = {
    Decision.CONTINUE: TrialScheduler.CONTINUE,
    Decision.PAUSE: TrialScheduler.STOP,  # ends the sitting; the next one is another Tune trial
    Decision.STOP: TrialScheduler.STOP,
}
_REMEMBERED = 2


class TuneScheduler(FIFOScheduler):
    """Starts trials in the searcher's order and ends the sittings that the driver ends.

    Args:
        spare: how many more trials may run now; below zero where the sweep has more than it may.
        listen: takes in what trials have told besides; all that came before an evaluation is heard first.
    """

    def __init__(self, driver: Driver, spare: Callable[[], int], listen: Callable[[], None]) -> None:
        super().__init__()
        self._driver = driver
        self._spare = spare
        self._listen = listen

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it runs, and must not go on from that."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Enter the evaluation in `result`, if there is one; the decision in Tune's terms."""
        evaluation = result.get("evaluation")
        if evaluation is None:
            return str(TrialScheduler.CONTINUE)
        self._listen()
        decision = self._driver.evaluated(trial.config["order"].trial, evaluation)
        return str(_TUNE[decision])

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The next trial in order; asked all the time."""
        controller = tune_controller._tune_controller
        # A gang whose trial ends is kept for the next one; not where another sweep is to have it.
        cache = controller._actor_cache
        spare = self._spare()
        cache._may_keep_one = spare > 0 or (spare == 0 and not cache.num_cached_objects)
        forget_ended(controller)
        return super().choose_trial_to_run(tune_controller)


def forget_ended(controller: Any) -> None:
    """Drop the trials that have ended from Tune's lists, all but the latest few.

    Tune keeps every trial for a result that nobody reads here, and goes through them at each step:
    a long sweep would grow by some 100 kB and slow down with each sitting.
    """
    ended = [trial for trial in controller._trials if trial.is_finished()]
    for trial in ended[: max(0, len(ended) - _REMEMBERED)]:
        controller._trials.remove(trial)
        for group in (controller._stopped_trials, controller._failed_trials, controller._trials_to_cache):
            group.discard(trial)
        controller._trial_metadata.pop(trial.trial_id, None)
