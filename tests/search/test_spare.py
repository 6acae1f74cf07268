"""When Tune keeps a gang for the next trial, and when it lets it go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.utils.object_cache import _ObjectCache

from search.schedulers.tune import TuneScheduler
from search.searcher import StudySearcher


@pytest.mark.parametrize(
    ("spare_before", "spare_after", "kept"),
    [
        (0, 1, True),  # as many run as may: the ended one's gang is for the next trial
        (3, 4, True),
        (-1, 0, False),  # another sweep is to have a gang
        (-3, -2, False),
    ],
)
def test_a_gang_is_kept_unless_another_sweep_is_to_have_it(
    spare_before: int, spare_after: int, kept: bool
) -> None:
    cache: Any = _ObjectCache(may_keep_one=True)
    controller = SimpleNamespace(_actor_cache=cache, _trials=[], get_trials=list)
    wrapped = SimpleNamespace(_tune_controller=controller, get_trials=list, get_live_trials=set)
    spare = spare_before
    scheduler = TuneScheduler(None, lambda: spare, lambda: None)  # type: ignore[arg-type]
    scheduler.choose_trial_to_run(wrapped)
    cached = cache.cache_object("gang", "actor")  # the trial ends
    spare = spare_after
    scheduler.choose_trial_to_run(wrapped)
    evicted = list(cache.flush_cached_objects())
    assert (cached and not evicted) is kept


def test_a_free_gang_goes_when_the_sweep_may_have_no_more() -> None:
    cache: Any = _ObjectCache(may_keep_one=True)
    controller = SimpleNamespace(_actor_cache=cache, _trials=[])
    wrapped = SimpleNamespace(_tune_controller=controller, get_trials=list, get_live_trials=set)
    spare = 1
    scheduler = TuneScheduler(None, lambda: spare, lambda: None)  # type: ignore[arg-type]
    scheduler.choose_trial_to_run(wrapped)
    assert cache.cache_object("gang", "actor")
    spare = 0
    scheduler.choose_trial_to_run(wrapped)
    assert list(cache.flush_cached_objects()) == ["actor"]


def test_a_sweep_that_is_extended_may_use_more_gangs() -> None:
    driver: Any = SimpleNamespace(target=2, over=False, next_trial=lambda: None)
    searcher = StudySearcher(driver, order=lambda record: None, concurrency=4)  # type: ignore[arg-type,return-value]
    assert searcher.spare() == 2  # no more than it has trials
    driver.target = 10
    assert searcher.suggest("a") is None
    assert searcher.spare() == 4
