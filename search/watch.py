"""Watches a sweep's budget: enters what this driver has used, and says when that is enough."""

from __future__ import annotations

from collections.abc import Mapping

from search.budget import Meter, Sitting, Spent, regret_bound, spent, usage
from search.config import BudgetConfig
from search.ledger import derived_seed
from search.results.text import number
from search.study import Study

_ENTERED_EVERY_S = 5.0
"""It is asked many times a second while a sweep waits for its last trials, and each entry is a write."""


class Watch:
    """The budget of a sweep while a driver works on it.

    Args:
        prices: of an hour of each node type.
    """

    def __init__(
        self, study: Study, *, budget: BudgetConfig, prices: Mapping[str, float], meter: Meter
    ) -> None:
        self._study = study
        self._budget = budget
        self._prices = prices
        self._meter = meter
        self._sitting = len(study.sittings)
        self._entered: Sitting | None = None
        self._over = False
        self._bound: tuple[int, float | None] = (0, None)  # complete trials it was worked out from

    def __call__(self) -> Spent | None:
        """The budget that is used up, if one is; what this driver has used is entered now and then."""
        own = self._meter.read()
        found = self.exhausted(own)
        due = self._entered is None or own.seconds - self._entered.seconds >= _ENTERED_EVERY_S
        if due or (found is not None and not self._over):  # who resumes it is to see that it is used up
            self._study.sit(self._sitting, own)
            self._entered = own
        self._over = found is not None
        return found

    def exhausted(self, own: Sitting) -> Spent | None:
        """The budget that is used up by what is in the ledger and by a driver's own sitting."""
        study = self._study
        trials, earlier = study.trials(), study.sittings[: self._sitting]
        used = usage(trials, [*earlier, own], self._prices)
        return spent(self._budget, used, trials, study.metric, study.goal) or self._settled()

    def _settled(self) -> Spent | None:
        """Whether less than `min_improvement` can still be gained."""
        least = self._budget.min_improvement
        if least is None:
            return None
        complete = self._study.complete()
        if len(complete) != self._bound[0]:
            seed = derived_seed(self._study.seed, len(complete), "regret")
            self._bound = (len(complete), regret_bound(complete, self._study.goal, seed))
        bound = self._bound[1]
        if bound is None or bound >= least:
            return None
        reason = f"no more than {number(bound)} can still be gained"
        return Spent(budget="search.budget.min_improvement", why=reason, then="drain")
