"""The `parameters` block of a sweep file: what it takes, and the exact words for what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from search.space import Categorical, Condition, Constant, IntUniform, Normal, Uniform
from search.spec import LEAVES, parse
from tests.search.sweep_file import changed, problems


def distribution(keys: Any, path: str = "learning_rate") -> Any:
    return parse(changed(**{f"parameters__{path}": keys})).space[path].distribution


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # unknown keys
        (
            {"parameters__learnin_rate": {"value": 1}},
            "parameters.learnin_rate: unknown key; did you mean learning_rate?",
        ),
        ({"parameters__lr": {"value": 1}}, "parameters.lr: unknown key; did you mean learning_rate?"),
        (
            {"parameters__depth": {"value": 1}},
            "parameters.depth: unknown key; did you mean unfreezing.depth?",
        ),
        (
            {"parameters__training__epochs": {"value": 1}},
            "parameters.training.epochs: unknown key; did you mean epochs?",
        ),
        (
            {"parameters__epochs": {"min": 1, "mx": 2, "max": 3}},
            "parameters.epochs.mx: unknown key; did you mean max?",
        ),
        (
            {"parameters__zero": {"value": 1}},
            "parameters.zero: a section, not a setting; it has zero.stage, zero.offload",
        ),
        (
            {"parameters__data__train": {"value": "x"}},
            "parameters.data.train: the data cannot be searched: trials are compared on the same examples",
        ),
        # wrong types
        ({"parameters": 5}, "parameters: must be a mapping, got 5"),
        # ranges and choices
        (
            {"parameters__learning_rate": {"min": 0.1, "max": 0.01}},
            "parameters.learning_rate: min 0.1 > max 0.01",
        ),
        ({"parameters__batch_size": {"values": []}}, "parameters.batch_size.values: must not be empty"),
        ({"parameters": {}}, "parameters: must not be empty"),
        (
            {"parameters__learning_rate": {"values": [-1]}},
            "parameters.learning_rate.values: must be > 0, got -1",
        ),
        (
            {"parameters__learning_rate": {"value": False}},
            "parameters.learning_rate.value: must be a number > 0 and <= 100, got false",
        ),
        ({"parameters__dropout": {"min": 0.1, "max": 1.0}}, "parameters.dropout.max: must be < 1, got 1.0"),
        ({"parameters__epochs": {"min": 0, "max": 3}}, "parameters.epochs.min: must be > 0, got 0"),
        ({"parameters__epochs": {"min": 1}}, "parameters.epochs.max: required by distribution int_uniform"),
        (
            {"parameters__epochs": {"min": "x", "max": 2}},
            "parameters.epochs.min: must be a number, or null, got 'x'",
        ),
        (
            {"parameters__epochs": {}},
            "parameters.epochs: nothing to choose from; give value, values, or min and max",
        ),
        (
            {"parameters__epochs": {"value": 1, "max": 2}},
            "parameters.epochs.max: not used by distribution constant; remove it, or change the distribution",
        ),
        (
            {"parameters__weight_decay": {"distribution": "log_uniform_values", "min": 0, "max": 1}},
            "parameters.weight_decay.min: must be > 0 for distribution log_uniform_values, got 0",
        ),
        (
            {"parameters__log_every": {"min": 1.0, "max": 3.5}},
            "parameters.log_every: takes a whole number >= 1 and <= 10, and uniform draws "
            "fractions; use int_uniform",
        ),
        (
            {"parameters__lr_schedule": {"min": 1, "max": 3}},
            "parameters.lr_schedule: takes one of linear, cosine, constant, polynomial; "
            "list what to try under values",
        ),
        (
            {"parameters__zero__stage": {"min": 2, "max": 4}},
            "parameters.zero.stage.max: must be one of 0, 1, 2, 3, got 4",
        ),
        (
            {"parameters__epochs": {"distribution": "q_uniform", "min": 1.1, "max": 1.4, "q": 0.5}},
            "parameters.epochs: no multiple of q 0.5 lies between min 1.1 and max 1.4",
        ),
        (
            {"parameters__batch_size": {"values": [16, "16"]}},
            "parameters.batch_size.values: 16 is there twice",
        ),
        (
            {"parameters__batch_size": {"values": [16, 32], "probabilities": [0.5, 0.4]}},
            "parameters.batch_size.probabilities: must add up to 1, got 0.9",
        ),
        (
            {"parameters__batch_size": {"values": [16, 32], "probabilities": [1]}},
            "parameters.batch_size.probabilities: must be as many as values, 2, got 1",
        ),
        (
            {"parameters__learning_rate": {"mu": -5, "sigma": 0.1}},
            "parameters.learning_rate: normal with mu -5.0 and sigma 0.1 hardly ever gives a number "
            "> 0 and <= 100",
        ),
        # conditions
        (
            {"parameters__dropout": {"value": 0.1, "when": {"unfreezing.shedule": "top"}}},
            "parameters.dropout.when: unknown parameter unfreezing.shedule; did you mean "
            "unfreezing.schedule?",
        ),
        (
            {"parameters__dropout": {"value": 0.1, "when": {"precision": "fp32"}}},
            "parameters.dropout.when: unknown parameter precision; precision is set, not searched: "
            "add it to parameters",
        ),
        (
            {"parameters__dropout": {"value": 0.1, "when": {"unfreezing.schedule": "phases"}}},
            "parameters.dropout.when.unfreezing.schedule: 'phases' is never a value of unfreezing.schedule "
            "(head, top, gradual, full)",
        ),
        (
            {"parameters__dropout": {"value": 0.1, "when": {"unfreezing.depth": [7]}}},
            "parameters.dropout.when.unfreezing.depth: 7 is never a value of unfreezing.depth (1 to 6)",
        ),
        (
            {"parameters__dropout": {"value": 0.1, "when": {"unfreezing.depth": []}}},
            "parameters.dropout.when.unfreezing.depth: must not be empty",
        ),
        (
            {
                "parameters__unfreezing__schedule": {
                    "values": ["top", "gradual"],
                    "when": {"unfreezing.depth": 1},
                }
            },
            "parameters: `when` goes round in a circle: unfreezing.schedule -> unfreezing.depth -> "
            "unfreezing.schedule: remove one of these conditions",
        ),
    ],
)
def test_one_mistake_has_one_message(change: dict[str, Any], expected: str) -> None:
    assert problems(changed(**change)) == [expected]


def test_a_misspelt_choice_names_the_nearest() -> None:
    raw = changed(parameters__unfreezing__schedule={"values": ["hed", "top", "gradual"]})
    assert problems(raw) == [
        "parameters.unfreezing.schedule.values: must be one of head, top, gradual, bottom-up, chain-thaw, "
        "lisa, full, phases, got 'hed'; did you mean head?"
    ]


@pytest.mark.parametrize("log", ["log_uniform", "log_unifrm"])
def test_an_unknown_distribution_names_the_nearest(log: str) -> None:
    (line,) = problems(changed(parameters__learning_rate={"distribution": log, "min": 1e-5, "max": 1e-3}))
    assert line.startswith("parameters.learning_rate.distribution: must be one of constant, ")
    assert line.endswith(f"got '{log}'; did you mean log_uniform_values?")


def test_distributions_are_inferred_as_in_wandb() -> None:
    assert distribution({"value": 1}) == Constant(value=1.0)
    assert distribution({"min": 0.1, "max": 1}) == Uniform(low=0.1, high=1.0)
    assert distribution({"min": 1, "max": 4}, "unfreezing__depth".replace("__", ".")) == IntUniform(
        low=1, high=4
    )
    assert distribution({"distribution": "q_uniform", "min": 0.15, "max": 0.5, "q": 0.1}) == Uniform(
        low=0.2, high=0.5, step=0.1
    )
    assert distribution(
        {"distribution": "q_uniform", "min": 20, "max": 64, "q": 16}, "batch_size"
    ) == IntUniform(low=32, high=64, step=16)
    assert distribution(
        {"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 8}, "batch_size"
    ) == IntUniform(low=8, high=64, step=8, log=True)
    assert distribution({"mu": 0.1, "sigma": 0.1}, "dropout") == Normal(
        mu=0.1, sigma=0.1, low=0, high=0.9999999999999999
    )
    weighted = {
        "distribution": "categorical_w_probabilities",
        "values": [16, 32],
        "probabilities": [0.25, 0.75],
    }
    assert distribution(weighted, "batch_size") == Categorical(choices=(16, 32), probabilities=(0.25, 0.75))


def test_nested_parameters_are_flattened_as_in_wandb() -> None:
    raw = changed()
    del raw["parameters"]["unfreezing.schedule"], raw["parameters"]["unfreezing.depth"]
    raw["parameters"]["unfreezing"] = {"parameters": {"depth": {"values": [1, 2]}}}
    assert parse(raw).space["unfreezing.depth"].distribution == Categorical(choices=(1, 2))
    raw["parameters"]["unfreezing.depth"] = {"value": 1}
    assert problems(raw) == ["parameters.unfreezing.depth: is there twice, nested and dotted; remove one"]


def test_parents_come_before_children() -> None:
    raw = changed()
    raw["parameters"] = dict(reversed(raw["parameters"].items()))
    assert [p.path for p in parse(raw).space.parameters] == [
        "unfreezing.schedule",
        "unfreezing.depth",
        "batch_size",
        "learning_rate",
    ]
    condition = Condition(path="unfreezing.schedule", values=("top", "gradual"))
    assert parse(raw).space["unfreezing.depth"].when == (condition,)


def test_every_leaf_can_be_searched_and_has_a_description() -> None:
    assert {
        "learning_rate",
        "zero.stage",
        "unfreezing.points",
        "task.max_length",
        "model.name",
    } <= LEAVES.keys()
    assert not any(path.startswith(("data", "training")) for path in LEAVES)
    assert all(leaf.description for leaf in LEAVES.values())
