"""Sweep files: YAML and overrides in, a spec or all problems out; and a spec back as text."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from search.loading import differences, load, loads, names, to_yaml
from search.problems import SpecError
from search.schema import json_schema
from search.space import IntUniform, Uniform
from search.spec import LEAVES, parse

TEXT = """
name: test
model: {name: some/model}
data: {train: train.csv, validation: validation.csv, test: test.csv}
parameters:
  learning_rate: {min: 1e-5, max: 0.1}
  unfreezing.depth: {min: 1, max: 6}
search:
  metric: {name: eval/loss, goal: minimize}
  scheduler: asha
"""


def problems(text: str, overrides: list[str] | None = None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        loads(text, overrides or [], source="s.yaml")
    return list(caught.value.problems)


def test_the_bundled_sweep_is_the_one_of_the_design() -> None:
    assert names() == ["quickstart"]
    spec = load("quickstart")
    assert spec.name == "quickstart"
    assert spec.search.trials >= 12
    assert spec.training.epochs <= 2
    assert (spec.data.limit.train, spec.data.limit.validation) == (2000, 500)
    assert list(spec.parameters) == ["learning_rate", "batch_size", "unfreezing.schedule", "unfreezing.depth"]
    for path in (spec.data.train, spec.data.validation, spec.data.test):
        assert path
        assert Path(path).is_absolute()
        assert Path(path).is_file()


def test_an_unknown_source_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"^quickstrat: no such file or bundled sweep; did you mean quickstart\?$"
    ):
        load("quickstrat")
    with pytest.raises(SpecError, match="must be a YAML file, got a directory"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1,\nb: }", ":2:4: expected the node content, but found '}'"),
        (b"a: 1\na: 2", ":2:1: key 'a' is there twice; remove one"),
        (b"a: {b: 1, b: 2}", ":1:11: key 'b' is there twice; remove one"),
        (b"a: !!python/object:os.system {}", ":1:4: could not determine a constructor for the tag"),
        (b"a: 1\n---\nb: 2", ":2:1: "),
        (b"\xff\xfe\x00", ": must be UTF-8 text, got byte 0xff"),
        (b"a: \x00", ": character 4 is not allowed in YAML"),
        (b"", ": must be a mapping with keys name, model, task, data, "),
        (b"- 1", ": must be a mapping with keys name, model, task, data, "),
        (b"x" * 1_000_001, ": must be at most 1,000,000 bytes, got 1,000,001: is it a sweep file?"),
        (b"a: " + b"[" * 5000, ": nested too deep"),
        (b"a: " + b"9" * 5000, ": "),
    ],
)
def test_a_file_that_is_no_sweep_says_where(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load(str(path))
    (line,) = caught.value.problems
    assert line.startswith(f"{path}{expected}")


def test_aliases_and_merges_cannot_explode() -> None:
    started = time.monotonic()
    lists = "a: &a0 [x]\n" + "".join(f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    merges = "a: &a0 {x: 1}\n" + "".join(
        f"b{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
    )
    assert "must hold at most" in problems(lists)[0]
    assert problems(merges)  # newer YAML readers merge a key once, older ones run into the limit below
    halves = "".join(f"{h}: &{h} {{{', '.join(f'{h}{i}: 1' for i in range(5_001))}}}\n" for h in "pq")
    assert "must have at most 10000 keys" in problems(halves + "r: {<<: [*p, *q]}")[0]
    assert "nested at most" in problems("a: &a [*a]")[0]
    problems("a: &a {<<: *a}")
    assert time.monotonic() - started < 5


def test_anchors_work_and_dates_stay_text() -> None:
    spec = loads(
        TEXT.replace("some/model}", "&m some/model, revision: 2024-01-31}")
        + "tracking: {wandb: {project: *m}}\n"
    )
    assert spec.model.revision == "2024-01-31"
    assert spec.tracking.wandb
    assert spec.tracking.wandb.project == "some/model"


def test_overrides_reach_every_path() -> None:
    spec = loads(
        TEXT,
        [
            "name=x",
            "search.trials=4",
            "training.zero.stage=3",
            "parameters.learning_rate.max=1e-3",
            "parameters.unfreezing.depth.max=4",
            "parameters.unfreezing.schedule={values: [top, head]}",
            "parameters.unfreezing.depth.when.unfreezing.schedule=top",
            "parameters.zero.stage.values=[1, 2]",
            "search.scheduler.reduction_factor=4",
            "search.sampler=random",
            "search.trials=5",
            "task.text=a=b",
        ],
    )
    assert (spec.name, spec.search.trials, spec.training.zero.stage, spec.task.text) == ("x", 5, 3, "a=b")
    assert spec.space["learning_rate"].distribution == Uniform(low=1e-5, high=1e-3)
    assert spec.space["unfreezing.depth"].distribution == IntUniform(low=1, high=4)
    assert spec.space["unfreezing.depth"].when[0].values == ("top",)
    assert spec.parameters["zero.stage"].values == [1, 2]
    assert (spec.search.scheduler.type, spec.search.scheduler.reduction_factor) == ("asha", 4)
    assert spec.search.sampler.type == "random"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.trails=4", "unknown key; did you mean search.trials?"),
        ("serach.trials=4", "unknown key; did you mean search?"),
        ("training.zero.stag=1", "unknown key; did you mean training.zero.stage?"),
        ("parameters.learnin_rate.max=1", "unknown key; did you mean learning_rate?"),
        ("parameters.learning_rate.mx=1", "unknown key; did you mean parameters.learning_rate.max?"),
        ("name.x=1", "unknown key"),
        ("data.x..y=1", "unknown key"),
        ("foo", "must be PATH=VALUE, such as search.trials=4"),
        ("=1", "must be PATH=VALUE, such as search.trials=4"),
        ("search.trials=[", "value:1:2: expected the node content, but found '<stream end>'"),
    ],
)
def test_a_wrong_override_says_which(override: str, expected: str) -> None:
    (line,) = problems(TEXT, [override])
    assert line.startswith(f"--set {override}: {expected}")


def test_problems_of_overrides_and_file_come_together() -> None:
    found = problems(
        TEXT.replace("name: test", "name: a b"), ["search.trails=4", "search.trials=0", "model=3"]
    )
    assert [line.split(": ")[0] for line in found] == [
        "--set search.trails=4",
        "name",
        "model",
        "search.trials",
    ]


def test_data_is_found_beside_the_file_then_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "sweeps" / "s.yaml").write_text(TEXT)
    for file in ("sweeps/train.csv", "work/train.csv", "work/validation.csv"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path / "work")
    data = load("../sweeps/s.yaml").data
    assert data.train == str(tmp_path / "sweeps" / "train.csv")
    assert data.validation == str(tmp_path / "work" / "validation.csv")
    assert data.test == "test.csv"
    named = load("../sweeps/s.yaml", ["data={name: imdb, train: train.csv}"]).data
    assert (named.name, named.train) == ("imdb", "train.csv")


def test_the_canonical_text_reads_back_equal() -> None:
    for spec in (
        load("quickstart"),
        loads(TEXT, ["tracking.wandb=null", "parameters.dropout={value: null}"]),
    ):
        text = to_yaml(spec)
        assert loads(text) == spec
        assert loads(text).space == spec.space
        assert to_yaml(loads(text)) == text
    assert "1.0e-05" in to_yaml(loads(TEXT))


def test_spelling_does_not_make_a_difference() -> None:
    other = yaml.safe_load(TEXT)
    other["search"]["scheduler"] = {"type": "asha", "reduction_factor": None}
    other["parameters"]["learning_rate"] = {"distribution": "uniform", "min": 0.00001, "max": "1e-1"}
    assert differences(loads(TEXT), parse(other)) == []
    assert loads(TEXT) == parse(other)


def test_differences_are_readable() -> None:
    new = loads(
        TEXT,
        [
            "search.trials=12",
            "parameters.learning_rate.max=0.2",
            "data.test=null",
            "parameters.batch_size={value: 8}",
        ],
    )
    assert differences(loads(TEXT), new) == [
        "data.test: 'test.csv' -> unset",
        "parameters.learning_rate.max: 0.1 -> 0.2",
        "search.trials: 16 -> 12",
        "parameters.batch_size.value: unset -> 8",
    ]


def test_the_schema_takes_good_files_and_knows_every_key() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(LEAVES) <= schema["properties"]["parameters"]["properties"].keys()
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    sweeps = Path(load("quickstart").data.train).parents[1]
    good = yaml.safe_load((sweeps / "quickstart.yaml").read_text())
    validator.validate(good)
    validator.validate(yaml.safe_load(to_yaml(load("quickstart"))))
    for place, key, value in (
        ("parameters", "learnin_rate", {"value": 1}),
        ("parameters", "learning_rate", {"values": [-1]}),
        ("parameters", "unfreezing.schedule", {"values": ["hed"]}),
        ("training", "epochs", 0),
        ("search", "sampler", "tpee"),
    ):
        bad = copy.deepcopy(good)
        bad[place][key] = value
        assert not validator.is_valid(bad), (place, key)
    good["parameters"]["zero"] = {"parameters": {"stage": {"values": [1, 2]}}}
    validator.validate(good)


@settings(max_examples=60, deadline=2000)
@given(st.text(max_size=60))
def test_any_text_loads_or_raises_spec_error(text: str) -> None:
    for whole in (text, f"{TEXT}\ntraining: {text}"):
        with pytest.raises(SpecError):
            loads(whole + "\nnonsense: 1")


TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@settings(max_examples=60, deadline=2000)
@given(
    trials=st.integers(1, 10**6),
    rate=st.floats(1e-9, 50),
    depth=st.integers(1, 100),
    words=st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters=TURNING),
        min_size=1,
        max_size=20,
    ),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_what_loads_round_trips(trials: int, rate: float, depth: int, words: str, weights: list[int]) -> None:
    raw: dict[str, Any] = yaml.safe_load(TEXT)
    raw["search"]["trials"] = trials
    raw["task"] = {"text": words}
    raw["parameters"] = {
        "learning_rate": {"min": rate, "max": rate * 2, "distribution": "log_uniform_values"},
        "unfreezing.depth": {"min": 1, "max": depth, "when": {"batch_size": 8}},
        "batch_size": {
            "values": [8 * (i + 1) for i in range(len(weights))],
            "probabilities": [w / sum(weights) for w in weights],
        },
    }
    spec = parse(raw)
    assert loads(to_yaml(spec)) == spec
    assert loads(to_yaml(spec)).space == spec.space
