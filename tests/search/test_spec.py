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
from search.space import Categorical, Uniform
from search.spec import LEAVES, ParameterSpec, SweepSpec, parse, trial_settings
from search.trackers import WandbConfig
from tests.search.sweep_file import GOOD, changed, problems
from training.config import PhaseConfig, PrefixStoreConfig, TrainingConfig


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
    ],
)
def test_one_mistake_has_one_message(change: dict[str, Any], expected: str) -> None:
    assert problems(changed(**change)) == [expected]


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
