"""The contract of a sweep file: what it takes, and the exact words for what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as setting
from hypothesis import strategies as st
from pydantic import ValidationError

from search.loading import loads, to_yaml
from search.problems import SpecError
from search.space import Categorical, Condition, Constant, IntUniform, Normal, Uniform
from search.spec import LEAVES, ParameterSpec, SweepSpec, parse, trial_settings
from search.trackers import WandbConfig
from training.config import PhaseConfig, PrefixStoreConfig, TrainingConfig

GOOD: dict[str, Any] = {
    "name": "test",
    "model": {"name": "some/model"},
    "data": {"train": "train.csv", "validation": "validation.csv"},
    "parameters": {
        "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 3e-3},
        "batch_size": {"values": [16, 32, 64]},
        "unfreezing.schedule": {"values": ["head", "top", "gradual", "full"]},
        "unfreezing.depth": {"min": 1, "max": 6, "when": {"unfreezing.schedule": ["top", "gradual"]}},
    },
    "search": {"metric": {"name": "eval/accuracy", "goal": "maximize"}},
}


def changed(**settings: Any) -> dict[str, Any]:
    """GOOD with dotted paths set; `__` stands for the dot. Keys of `parameters` are whole."""
    raw = copy.deepcopy(GOOD)
    for name, value in settings.items():
        first, *rest = name.split("__")
        place, last = raw, first
        if first == "parameters" and rest:
            place, last = raw["parameters"], ".".join(rest)
        else:
            for part in rest:
                place, last = place.setdefault(last, {}), part
        place[last] = value
    return raw


def problems(raw: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(raw)
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return list(caught.value.problems)


def distribution(keys: Any, path: str = "learning_rate") -> Any:
    return parse(changed(**{f"parameters__{path}": keys})).space[path].distribution


def test_a_good_file_has_defaults_and_a_space() -> None:
    spec = parse(GOOD)
    assert spec.training == TrainingConfig()
    assert (spec.search.sampler.type, spec.search.scheduler.type, spec.search.seed) == ("auto", "auto", 0)
    assert (spec.resources.workers, spec.resources.max_concurrent) == (1, "auto")
    assert spec.checkpoints.keep == 3
    assert spec.tracking.wandb == WandbConfig()
    assert [p.path for p in spec.space.parameters] == list(GOOD["parameters"])
    with pytest.raises(ValidationError):
        spec.name = "other"


@pytest.mark.parametrize("short", ["recompute", "off", False])
def test_the_prefix_store_can_be_turned_off(short: Any) -> None:
    assert parse(GOOD).resources.prefix_store == PrefixStoreConfig()
    assert parse(changed(resources__prefix_store=short)).resources.prefix_store.mode == "recompute"
    budget = parse(changed(resources__prefix_store={"memory": 2, "disk": "auto"})).resources.prefix_store
    assert budget == PrefixStoreConfig(memory=2.0)
    assert problems(changed(resources__prefix_store="recomputed")) == [
        "resources.prefix_store.mode: must be one of store, recompute, got 'recomputed'; "
        "did you mean recompute?"
    ]


def test_short_forms() -> None:
    spec = parse(changed(search__sampler="random", search__scheduler="none", tracking__wandb=None))
    assert (spec.search.sampler.type, spec.search.scheduler.type, spec.tracking.wandb) == (
        "random",
        "none",
        None,
    )
    spec = parse(changed(search__sampler={"type": "tpe", "startup_trials": 5}))
    assert spec.search.sampler.startup_trials == 5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # unknown keys
        ({"serach": {}}, "serach: unknown key; did you mean search?"),
        ({"training__epoch": 2}, "training.epoch: unknown key; did you mean epochs?"),
        ({"training__zero__stge": 2}, "training.zero.stge: unknown key; did you mean stage?"),
        ({"tracking__wandb": {"projct": "x"}}, "tracking.wandb.projct: unknown key; did you mean project?"),
        ({"data__limit": {"vaildation": 3}}, "data.limit.vaildation: unknown key; did you mean validation?"),
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
        ({"training__epochs": "many"}, "training.epochs: must be a number > 0 and <= 100000, got 'many'"),
        ({"training__epochs": True}, "training.epochs: must be a number > 0 and <= 100000, got true"),
        (
            {"training__batch_size": 1.5},
            "training.batch_size: must be a whole number >= 1 and <= 10000000, got 1.5",
        ),
        (
            {"training__max_grad_norm": float("inf")},
            "training.max_grad_norm: must be a number >= 0, got .inf",
        ),
        ({"training__max_grad_norm": "nan"}, "training.max_grad_norm: must be a number >= 0, got 'nan'"),
        ({"training__zero__stage": True}, "training.zero.stage: must be one of 0, 1, 2, 3, got true"),
        ({"search__trials": True}, "search.trials: must be a whole number >= 1, got true"),
        (
            {"search__trials": 2**70},
            "search.trials: must be a whole number >= 1, got a number of more than 64 bits",
        ),
        ({"task__label": True}, "task.label: must be text, got true; quote it"),
        (
            {"resources": 5},
            "resources: must be a mapping of workers, cpus_per_worker, gpus_per_worker, "
            "max_concurrent, priority, max_gangs, prefix_store, prices, got 5",
        ),
        ({"parameters": 5}, "parameters: must be a mapping, got 5"),
        (
            {"training__micro_batch_size": 0},
            "training.micro_batch_size: must be a whole number >= 1, or auto, got 0",
        ),
        (
            {"training__unfreezing": {"phases": [{"start": 0, "thaw": ["haed"]}]}},
            "training.unfreezing.phases[0].thaw[0]: must be a whole number, or one of head, embeddings, all, "
            "got 'haed'; did you mean head?",
        ),
        (
            {"training__precision": "fp23"},
            "training.precision: must be one of fp32, bf16, fp16, got 'fp23'; did you mean fp32?",
        ),
        (
            {"search__scheduler": "ahsa"},
            "search.scheduler.type: must be one of auto, asha, hyperband, bohb, median, pasha, none, "
            "got 'ahsa'; did you mean asha?",
        ),
        # bounds
        ({"training__epochs": -1}, "training.epochs: must be > 0, got -1"),
        ({"search__trials": 0}, "search.trials: must be >= 1, got 0"),
        (
            {"search__scheduler": {"reduction_factor": 1}},
            "search.scheduler.reduction_factor: must be > 1, got 1",
        ),
        ({"checkpoints": {"keep": 0}}, "checkpoints.keep: must be >= 1, got 0"),
        ({"model__name": ""}, "model.name: must not be empty"),
        # missing
        ({"search": {}}, "search.metric: required; it takes a mapping of name, goal"),
        (
            {"search__metric": {"name": "x"}},
            "search.metric.goal: required; it takes one of maximize, minimize",
        ),
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


@pytest.mark.parametrize("name", ["", ".x", "-x", "a b", "a/b", "..", "x" * 65, "é"])
def test_names_are_safe_directory_names(name: str) -> None:
    (line,) = problems(changed(name=name))
    assert line.startswith("name: must be 1 to 64 letters, digits, '.', '_' and '-', beginning with")
    assert parse(changed(name="A-b_c.9")).name == "A-b_c.9"


def test_all_mistakes_come_at_once_in_the_order_of_the_sections() -> None:
    raw = changed(
        resources__workers=0,
        training__epochs=-1,
        training__foo=1,
        name="a b",
        parameters__learnin_rate={"value": 1},
        parameters__learning_rate={"min": 0.1, "max": 0.01},
        parameters__batch_size={"values": []},
        parameters__dropout=5,
        search__trials="x",
    )
    del raw["model"]
    places = [line.split(": ")[0] for line in problems(raw)]
    assert sorted(places) == sorted(
        [
            "name",
            "model",
            "training.foo",
            "training.epochs",
            "parameters.learnin_rate",
            "parameters.learning_rate",
            "parameters.batch_size.values",
            "parameters.dropout",
            "search.trials",
            "resources.workers",
        ]
    )
    sections = [place.split(".")[0] for place in places]
    order = list(SweepSpec.model_fields)
    assert sections == sorted(sections, key=order.index)


def test_numbers_that_yaml_reads_as_text() -> None:
    spec = parse(
        changed(
            training__weight_decay="1e-5",
            parameters__learning_rate={"distribution": "log_uniform_values", "min": "1e-5", "max": "1e-3"},
            parameters__dropout={"values": ["1e-1", 0]},
        )
    )
    assert spec.training.weight_decay == 1e-5
    assert spec.space["learning_rate"].distribution == Uniform(low=1e-5, high=1e-3, log=True)
    assert spec.space["dropout"].distribution == Categorical(choices=(0.1, 0.0))


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


def test_values_are_laid_over_the_sections() -> None:
    spec = parse(changed(training__epochs=2, training__unfreezing={"depth": 4}))
    config = trial_settings(
        spec,
        {
            "learning_rate": 1e-4,
            "unfreezing.schedule": "phases",
            "unfreezing.phases": [{"start": 0, "thaw": ["head", -1]}],
            "task.max_length": 32,
            "model.revision": "main",
        },
        seed=7,
    )
    assert (config.seed, config.data) == (7, spec.data)
    assert (config.training.learning_rate, config.training.epochs, config.training.unfreezing.depth) == (
        1e-4,
        2.0,
        4,
    )
    assert config.training.unfreezing.phases == [PhaseConfig(start=0.0, thaw=["head", -1])]
    assert (config.task.max_length, config.model.name, config.model.revision) == (32, "some/model", "main")
    assert spec.training.learning_rate == TrainingConfig().learning_rate
    assert trial_settings(spec, {}, seed=1).training == spec.training


def test_wrong_values_are_not_laid_over() -> None:
    with pytest.raises(SpecError) as caught:
        trial_settings(parse(GOOD), {"learning_rate": -1, "foo": 1, "batch_size": True}, seed=0)
    assert caught.value.problems == (
        "learning_rate: must be > 0, got -1",
        "foo: unknown parameter",
        "batch_size: must be a whole number >= 1 and <= 10000000, got true",
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["head", "top", "1e-5", "nan", "asha", "int_uniform", "normal", "uniform", b"x", object()]
    ),
)
WORDS = st.sampled_from(
    [
        *LEAVES,
        *SweepSpec.model_fields,
        *ParameterSpec.model_fields,
        *("parameters", "zero", "stage", "unfreezing", "phases", "thaw", "metric", "wandb", "limit"),
    ]
)
KEYS = st.one_of(WORDS, WORDS, st.text(max_size=4), st.integers(), st.none())
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=12,
)


@setting(max_examples=150, deadline=2000)
@given(
    changes=st.dictionaries(KEYS, ANYTHING, max_size=4),
    parameters=st.dictionaries(KEYS, ANYTHING, max_size=3),
)
def test_any_mapping_loads_or_raises_spec_error(changes: dict[Any, Any], parameters: dict[Any, Any]) -> None:
    raw = copy.deepcopy(GOOD)
    raw["parameters"].update(parameters)
    raw |= {
        k: {**raw[k], **v} if isinstance(v, dict) and isinstance(raw.get(k), dict) else v
        for k, v in changes.items()
    }
    try:
        spec = parse(raw)
    except SpecError as error:
        lines = error.problems
    else:
        lines = ("spec: " + to_yaml(spec).splitlines()[0],)
        assert loads(to_yaml(spec)) == spec
    assert lines
    assert all(p.isprintable() and ": " in p for p in lines)


def test_endless_and_exploding_values_are_refused() -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    assert "nested at most" in problems(endless)[0]
    bomb: Any = "x"
    for _ in range(20):
        bomb = [bomb] * 4
    assert problems({"name": bomb})[0].startswith("the sweep file: must hold at most")
