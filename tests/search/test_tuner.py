"""What Ray Tune must not do with what it finds in the driver's environment."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.execution import class_cache

from search import tuner
from search.schedulers.base import Decision
from search.schedulers.tune import TuneScheduler
from search.searcher import StudySearcher


def test_no_key_travels_with_a_trainable(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}  # a sweep run before in this process took them out
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", {*class_cache.ENV_VARS_TO_PROPAGATE, *keys})
    for key in keys:
        monkeypatch.setenv(key, "planted-secret")

    class Trainable(tune.Trainable):
        pass

    def environment() -> str:
        return str(class_cache._ActorClassCache().get(Trainable)._default_options["runtime_env"])

    assert "planted-secret" in environment()  # Ray's way: it ends up in command lines
    tuner._keep_keys_home()
    assert "planted-secret" not in environment()


def test_what_a_trial_told_is_heard_before_its_evaluation_is_entered() -> None:
    """A short trial has ended before the feed is looked at, and its phases would be lost."""
    told: list[str] = []

    def evaluated(number: int, evaluation: str) -> Decision:
        told.append(f"evaluation {evaluation} of {number}")
        return Decision.CONTINUE

    driver: Any = SimpleNamespace(
        target=1,
        next_trial=lambda: SimpleNamespace(number=7),
        evaluated=evaluated,
        ended=lambda number: told.append("end"),
    )
    searcher = StudySearcher(
        driver,
        order=lambda record: SimpleNamespace(trial=7),
        concurrency=1,
        listen=lambda: told.append("news"),
    )
    scheduler = TuneScheduler(driver, searcher.spare, lambda: told.append("news"))
    config = searcher.suggest("a")
    result: Any = {"evaluation": "1"}
    scheduler.on_trial_result(None, SimpleNamespace(config=config), result)
    searcher.on_trial_complete("a", {"last_evaluation": "2"})
    assert told == ["news", "evaluation 1 of 7", "news", "evaluation 2 of 7", "end"]
