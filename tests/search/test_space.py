"""The search space: what comes up, what is active, and what Optuna stores for it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.parameters import build, to_block
from search.space import (
    Categorical,
    Condition,
    Constant,
    IntUniform,
    Normal,
    Parameter,
    SearchSpace,
    Uniform,
    active,
    canonical,
    decode,
    digest,
    distributions,
    encode,
    multiple,
    suggest,
)
from search.spec import LEAVES

SPACE = SearchSpace(
    parameters=(
        Parameter(path="weight_decay", distribution=Constant(value=0.1)),
        Parameter(path="learning_rate", distribution=Uniform(low=1e-5, high=1e-2, log=True)),
        Parameter(path="warmup_ratio", distribution=Uniform(low=0.1, high=0.5, step=0.1)),
        Parameter(path="adam_epsilon", distribution=Uniform(low=0.1, high=1.0, step=0.1, log=True)),
        Parameter(path="dropout", distribution=Normal(mu=0.1, sigma=0.05, low=0.0, high=0.3)),
        Parameter(
            path="batch_size", distribution=Categorical(choices=(8, 16, 32), probabilities=(0.5, 0.3, 0.2))
        ),
        Parameter(path="task.max_length", distribution=IntUniform(low=16, high=128, step=16, log=True)),
        Parameter(path="unfreezing.schedule", distribution=Categorical(choices=("head", "top", "gradual"))),
        Parameter(
            path="unfreezing.depth",
            distribution=IntUniform(low=1, high=3),
            when=(Condition(path="unfreezing.schedule", values=("top", "gradual")),),
        ),
        Parameter(
            path="unfreezing.points",
            distribution=Categorical(choices=([0.1, 0.2], [0.3, 0.4], None)),
            when=(
                Condition(path="unfreezing.schedule", values=("gradual",)),
                Condition(path="unfreezing.depth", values=(2,)),
            ),
        ),
    )
)


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            trial = study.ask()
            trial.set_user_attr("values", suggest(SPACE, trial))
            study.tell(trial, 0.0)
    return study


def values_of(study: optuna.Study) -> list[dict[str, Any]]:
    return [t.user_attrs["values"] for t in study.trials]


def test_every_value_is_one_that_the_space_describes(study: optuna.Study) -> None:
    drawn = values_of(study)
    assert all(v["weight_decay"] == 0.1 for v in drawn)
    assert all(1e-5 <= v["learning_rate"] <= 1e-2 for v in drawn)
    assert {v["warmup_ratio"] for v in drawn} == {0.1, 0.2, 0.3, 0.4, 0.5}
    assert {v["adam_epsilon"] for v in drawn} <= {multiple(k, 0.1) for k in range(1, 11)}
    assert all(0 <= v["dropout"] <= 0.3 for v in drawn)
    assert {v["batch_size"] for v in drawn} == {8, 16, 32}
    assert {v["task.max_length"] for v in drawn} <= set(range(16, 129, 16))
    assert all(isinstance(v["task.max_length"], int) for v in drawn)


def test_draws_follow_their_distributions(study: optuna.Study) -> None:
    drawn = values_of(study)
    assert 0.4 < sum(v["batch_size"] == 8 for v in drawn) / 300 < 0.6
    assert 0.13 < sum(v["batch_size"] == 32 for v in drawn) / 300 < 0.27
    assert abs(sum(v["dropout"] for v in drawn) / 300 - 0.1) < 0.01
    assert abs(sum(math.log10(v["learning_rate"]) for v in drawn) / 300 + 3.5) < 0.2


def test_only_active_parameters_are_asked_for(study: optuna.Study) -> None:
    for trial in study.trials:
        values = trial.user_attrs["values"]
        assert ("unfreezing.depth" in values) == (values["unfreezing.schedule"] != "head")
        deep = values["unfreezing.schedule"] == "gradual" and values.get("unfreezing.depth") == 2
        assert ("unfreezing.points" in values) == deep == ("unfreezing.points" in trial.params)
        assert "weight_decay" not in trial.params


def test_stored_numbers_decode_to_what_was_suggested_and_encode_back(study: optuna.Study) -> None:
    for trial in study.trials:
        values = trial.user_attrs["values"]
        assert decode(SPACE, trial.params) == values
        again = decode(SPACE, encode(SPACE, values))
        assert again.pop("dropout") == pytest.approx(values.pop("dropout"))
        assert again == values


def test_distributions_are_those_that_suggest_asks_for(study: optuna.Study) -> None:
    made = distributions(SPACE)
    for trial in study.trials:
        assert {k: made[k] for k in trial.distributions} == trial.distributions
    values = decode(SPACE, study.trials[0].params)
    params = encode(SPACE, values)
    trial = optuna.create_trial(params=params, distributions={k: made[k] for k in params}, value=1.0)
    assert decode(SPACE, trial.params).keys() == values.keys()


def test_enqueued_values_are_suggested(study: optuna.Study) -> None:
    fresh = optuna.create_study()
    wanted = values_of(study)[0] | {"batch_size": 32, "unfreezing.schedule": "top", "unfreezing.depth": 3}
    fresh.enqueue_trial(encode(SPACE, wanted))
    got = suggest(SPACE, fresh.ask())
    assert got.pop("dropout") == pytest.approx(wanted["dropout"])
    assert got == {k: v for k, v in wanted.items() if k not in ("dropout", "unfreezing.points")}


def test_a_child_of_an_inactive_parent_is_inactive() -> None:
    values = {"unfreezing.schedule": "head", "unfreezing.depth": 2, "unfreezing.points": None}
    assert active(SPACE, values) == ("weight_decay", "unfreezing.schedule")
    values["unfreezing.schedule"] = "gradual"
    assert active(SPACE, values)[-2:] == ("unfreezing.depth", "unfreezing.points")


def test_equal_trials_have_one_digest() -> None:
    one = {"unfreezing.schedule": "head", "learning_rate": 0.001, "unfreezing.depth": 3}
    same = {"learning_rate": 1e-3, "weight_decay": 0.1, "unfreezing.schedule": "head", "unfreezing.depth": 1}
    assert canonical(SPACE, one) == canonical(SPACE, same)
    assert list(canonical(SPACE, one)) == ["learning_rate", "unfreezing.schedule", "weight_decay"]
    assert digest(SPACE, one) == digest(SPACE, same)
    assert digest(SPACE, one) != digest(SPACE, one | {"learning_rate": 0.002})
    json.dumps(canonical(SPACE, one))


def test_a_normal_distribution_stays_inside_its_bounds_and_finite() -> None:
    wide = Normal(mu=0.0, sigma=1.0)
    assert all(math.isfinite(wide.decode(u)) for u in (0.0, 1.0))
    assert wide.decode(0.5) == pytest.approx(0)
    cut = Normal(mu=0.0, sigma=1.0, low=0.0)
    assert cut.decode(0.0) >= 0
    assert cut.decode(0.5) == pytest.approx(0.6745, abs=1e-3)  # the median of a half-normal


def test_a_least_value_next_to_nothing_is_not_rounded_to_what_the_setting_refuses() -> None:
    for distribution in ("q_uniform", "q_log_uniform_values"):
        keys = {"distribution": distribution, "min": 2.5e-127, "max": 2, "q": 1}
        for path in ("learning_rate", "weight_decay"):
            space, problems = build({path: keys}, LEAVES)
            assert problems == []
            lowest = 0 if path == "weight_decay" and distribution == "q_uniform" else 1
            assert space.parameters[0].distribution.low == lowest  # type: ignore[union-attr]


@given(st.data())
def test_any_block_that_builds_reads_back_the_same(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(["learning_rate", "dropout", "batch_size", "epochs", "task.max_length"]))
    number = st.one_of(st.integers(-2, 100), st.floats(-1, 10, allow_nan=False))
    keys = data.draw(
        st.one_of(
            st.fixed_dictionaries({"values": st.lists(number, max_size=4)}),
            st.fixed_dictionaries(
                {"min": number, "max": number},
                optional={
                    "q": number,
                    "distribution": st.sampled_from(
                        ["uniform", "int_uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values"]
                    ),
                },
            ),
            st.fixed_dictionaries({"mu": number, "sigma": number}),
        )
    )
    space, problems = build({path: keys}, LEAVES)
    if problems:
        assert all(p.startswith(f"parameters.{path}") and "\n" not in p for p in problems)
        return
    assert build(to_block(space), LEAVES) == (space, [])
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()
    value = suggest(space, trial)[path]
    assert LEAVES[path].check(value)[1] is None, value


def test_light_to_import() -> None:
    code = (
        "import sys, search.loading, search.schema; "
        "print([m for m in ('torch', 'ray', 'optuna', 'wandb', 'datasets', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
