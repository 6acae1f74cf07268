"""Ray Tune's `Searcher` over the driver. Thin: all that lasts is in the study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from search.driver import Driver
from search.records import TrialRecord
from training.gang import Failed, Order

Allowed = Callable[[int, int], int]
"""How many gangs a sweep may have now, of those that it wants; it is told what it wants and what it has."""


class StudySearcher(Searcher):
    """Hands the driver's trials to Ray Tune, at most `concurrency` at a time, and as many as are allowed.

    Each sitting of a trial is a Tune trial of its own, which goes on from the newest checkpoint: so Tune
    has no paused trials, which it would count as running, wait for at the end, and keep in memory.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        order: Callable[[TrialRecord], Order],
        concurrency: int,
        allowed: Allowed | None = None,
        listen: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()  # no metric: values go to the ledger, not through Tune
        self._driver = driver
        self._order = order
        self._concurrency = concurrency
        self._most = min(concurrency, driver.target)
        self._allowed = allowed
        self._listen = listen
        self._running: dict[str, int] = {}
        self._wants_more = True

    def spare(self) -> int:
        """How many more trials may run now; below zero where more run than may."""
        running = len(self._running)
        limit = self._most
        if self._allowed is not None:
            # One more than run, where none is at hand: a warm gang for the next that comes up.
            wants = limit if self._wants_more else min(limit, running + 1)
            limit = min(limit, self._allowed(wants, running))
        return limit - running

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial as an order for a gang; None while enough are running, or one may yet come up."""
        self._most = min(self._concurrency, self._driver.target)  # a sweep may be extended
        if self.spare() <= 0:
            return None
        record = self._driver.next_trial()
        self._wants_more = record is not None
        if record is None:
            return str(Searcher.FINISHED) if self._driver.over else None
        self._running[trial_id] = record.number
        return {"order": self._order(record)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """End the trial's sitting."""
        number = self._running.pop(trial_id)
        self._wants_more = True
        self._listen()
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
