"""Watches a sweep's budget: enters what this driver has used, and says when that is enough."""

from __future__ import annotations

from collections.abc import Mapping

from search.budget import Meter, Spent, Usage, regret_bound, spent, usage
from search.config import BudgetConfig
from search.ledger import derived_seed
from search.results.text import number
from search.study import Study


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
        self._bound: tuple[int, float | None] = (0, None)  # complete trials it was worked out from

    def __call__(self) -> Spent | None:
        """The budget that is used up, if one is; what this driver has used is entered first."""
        study = self._study
        with study.writing():
            study.sit(self._sitting, self._meter.read())
            return self.exhausted()

    def exhausted(self) -> Spent | None:
        """The budget that is used up, by what is in the ledger."""
        study = self._study
        found = spent(self._budget, self.used(), study.trials(), study.metric, study.goal)
        return found or self._settled()

    def used(self) -> Usage:
        """What the sweep has used, over all drivers."""
        return usage(self._study.trials(), self._study.sittings, self._prices)

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
