"""Ray Tune's `Searcher` over the driver. Thin: all that lasts is in the study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from search.driver import Driver
from search.records import TrialRecord
from training.gang import Failed, Order


class StudySearcher(Searcher):
    """Hands the driver's trials to Ray Tune, at most `concurrency` at a time.

    Tune's own limit counts paused trials too, and would wait for them for ever.
    """

    def __init__(self, driver: Driver, *, order: Callable[[TrialRecord], Order], concurrency: int) -> None:
        super().__init__()  # no metric: values go to the ledger, not through Tune
        self._driver = driver
        self._order = order
        self._concurrency = concurrency
        self._running: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial as an order for a gang; None while enough are running."""
        if len(self._running) >= self._concurrency:
            return None
        record = self._driver.next_trial()
        if record is None:
            return str(Searcher.FINISHED)
        self._running[trial_id] = record.number
        return {"order": self._order(record)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close the trial in the ledger."""
        number = self._running.pop(trial_id)
        # Tune keeps the result of a trial that is done from its scheduler.
        if result is not None and result.get("last_evaluation") is not None:
            self._driver.evaluated(number, result["last_evaluation"])
        failure: Failed | None = (result or {}).get("failure")
        if error:
            failure = Failed(error="the process that held its gang died", details="")
        if failure is None:
            self._driver.ended(number)
        else:
            self._driver.ended(number, failure.error, kind=failure.kind)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it runs, and must not go on from that."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the ledger."""
