"""What Ray Tune must not do with what it finds in the driver's environment."""

import pytest
from ray import tune
from ray.tune.execution import class_cache

from search import tuner


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
