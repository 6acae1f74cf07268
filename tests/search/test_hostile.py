"""Sweep files and ledgers as a stranger might write them: read, or refused in a line."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.budget import Sitting, usage
from search.config import SamplerConfig
from search.life import Life, Wanted
from search.loading import loads
from search.problems import SpecError
from search.records import Result, TrialState
from search.space import suggest
from search.spec import parse
from search.study import Study

GOOD = """\
name: small
model: {name: m}
data: {train: t.jsonl, validation: v.jsonl}
parameters: {learning_rate: {min: 0.001, max: 0.1}}
search: {metric: {name: eval/accuracy, goal: maximize}, sampler: random}
"""


def nested(kind: str) -> str:
    """Nine levels of ten aliases each: 10^9 values."""
    opening, closing = ("[", "]") if kind == "list" else ("{", "}")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        inner = ", ".join(f"*a{level - 1}" if kind == "list" else f"k{i}: *a{level - 1}" for i in range(10))
        lines.append(f"a{level}: &a{level} {opening}{inner}{closing}")
    return "\n".join(lines) + "\n" + GOOD


HOSTILE_FILES = {
    "python object": "name: !!python/object/apply:os.system ['touch CANARY']\n",
    "python name": GOOD + "task: !!python/name:os.system {}\n",
    "python module": GOOD + "task: !!python/module:antigravity {}\n",
    "lists of aliases": nested("list"),
    "mappings of aliases": nested("mapping"),
    "endless": "a: &a [*a]\n" + GOOD,
    "endless parameters": "name: x\nparameters: &p {learning_rate: *p}\n",
    "deep lists": "name: " + "[" * 20_000 + "]" * 20_000,
    "deep mappings": "name: " + "{a: " * 5_000 + "}" * 5_000,
    "a number of 5,000 digits": GOOD.replace("0.001", "1" + "0" * 5_000),
    "a number of 400 digits": GOOD + "training: {batch_size: " + "9" * 400 + "}\n",
    "a number beyond floats": GOOD.replace("0.1", "1e400"),
    "base 60": GOOD.replace("0.001", "1:" + "30:" * 3_000 + "00"),
    "escapes in a name": GOOD.replace("small", '"x\\e[2J"'),
    "escapes in a path": GOOD.replace("t.jsonl", '"t\\e[2J.jsonl"'),
    "no end of a path": GOOD.replace("t.jsonl", '"t\\0.jsonl"'),
    "text that turns": GOOD.replace("name: m", 'name: "\\u202em"'),
    "half a character": GOOD.replace("small", '"\\ud800"'),
    "a name that leads out": GOOD.replace("small", "../../x"),
    "a name that is the parent": GOOD.replace("small", ".."),
    "a name that is a path": GOOD.replace("small", "/etc/passwd"),
    "a long word": GOOD.replace("name: m", "name: " + "m" * 100_000),
    "100 MB": GOOD + "#" + "x" * 100_000_000,
    "bytes": GOOD.replace("name: m", "name: !!binary aGVsbG8="),
    "a set": GOOD + "tracking: !!set {a, b}\n",
    "keys that are no text": GOOD + "1: 2\n",
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_hostile_sweep_file_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as error:
        loads(HOSTILE_FILES[name])
    for line in error.value.problems:
        assert line.isprintable()
        assert len(line) < 1_000
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(0, len(GOOD)),
    length=st.integers(0, 30),
    junk=st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            ["&a", "*a", "<<: ", "!!python/none ", "? ", "- ", "{", "]", "|\n", "1e999", ".inf", "\t"]
        ),
    ),
)
def test_sweep_files_are_read_or_refused(at: int, length: int, junk: str) -> None:
    with suppress(SpecError):
        spec = loads(GOOD[:at] + junk + GOOD[at + length :])
        assert spec.name.replace("-", "").replace("_", "").replace(".", "").isalnum()


# Ledgers

SPACE = parse(
    {
        "name": "small",
        "model": {"name": "m"},
        "data": {"train": "t.jsonl", "validation": "v.jsonl"},
        "parameters": {"learning_rate": {"min": 0.001, "max": 0.1}, "batch_size": {"values": [8, 16]}},
        "search": {"metric": {"name": "eval/accuracy", "goal": "maximize"}},
    }
).space


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The entries of a real ledger."""
    path = tmp_path_factory.mktemp("ledger") / "study.journal"
    study = Study.open(
        path,
        name="small",
        suggest=partial(suggest, SPACE),
        metric="eval/accuracy",
        goal="maximize",
        sampler=SamplerConfig(type="random"),
        seed=0,
    )
    for state in (TrialState.COMPLETE, TrialState.FAILED, None):
        number = study.ask().number
        result = Result(epochs=1.0, metrics={"eval/accuracy": 0.5}, checkpoint="/r/trials/0000/step-1")
        study.report(number, result)
        if state is not None:
            study.tell(number, state)
    study.live(Life(wanted=Wanted.DRAIN, reason="thaw stop"))
    study.aim(4)
    study.obeyed("1", "no new trial starts")
    study.sit(0, Sitting(seconds=5.0, node_seconds={"default": 5.0}))
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def written(directory: Path, entries: list[Any]) -> Path:
    path = directory / "study.journal"
    path.write_bytes(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
    return path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a JSON value."""
    found = [at]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        found += places(each, (*at, key))
    return found


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], new)
    return copy


def of_the_study(entries: list[dict[str, Any]], attribute: dict[str, Any]) -> list[dict[str, Any]]:
    """The ledger, where the study has been given an attribute."""
    other = next(e for e in entries if e["op_code"] == 2)
    return [*entries, {**other, "user_attr": attribute}]


def test_no_word_of_a_ledger_steers_a_terminal(ledger: list[dict[str, Any]], tmp_path: Path) -> None:
    entries = of_the_study(ledger, {"life": {"wanted": "pause", "reason": "\x1b[2Jgone"}})
    study = Study.read(written(tmp_path, of_the_study(entries, {"command:1": "\x1b[2Jdone"})))
    assert study.life.reason == "\N{REPLACEMENT CHARACTER}[2Jgone"
    assert study.outcome("1") == "\N{REPLACEMENT CHARACTER}[2Jdone"


@pytest.mark.parametrize(
    "attribute",
    [
        {"life": {"wanted": "explode", "reason": ""}},
        {"life": "run"},
        {"sitting:0": {"seconds": "1", "node_seconds": {}}},
        {"sitting:0": {"seconds": -1.0, "node_seconds": {}}},
        {"sitting:0": {"seconds": 1.0, "node_seconds": {"\x1b[2J": 1.0}}},
        {"sitting:0": {"seconds": 1.0, "node_seconds": {"default": None}}},
        {"name": "\x1b[2J"},
        {"target": 10**30},
        {"objectives": [["cost/latency"]]},
        {"objectives": [["cost/latency", "more"]]},
        {"points": 5},
        {"points": [5]},
        {"prior": [{"params": {}, "state": "complete"}]},
        {"deleted:0": 5},
    ],
)
def test_what_a_study_cannot_have_is_refused(
    ledger: list[dict[str, Any]], tmp_path: Path, attribute: dict[str, Any]
) -> None:
    path = written(tmp_path, of_the_study(ledger, attribute))
    with pytest.raises(ValueError, match="an entry of it cannot be right") as error:
        Study.read(path)
    assert str(error.value).startswith(f"{path}: ")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ledgers_are_read_or_refused(
    ledger: list[dict[str, Any]], tmp_path: Path, data: st.DataObject
) -> None:
    entries: list[Any] = list(ledger)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(entries) - 1))
        match data.draw(st.sampled_from(["replace", "drop", "twice"])):
            case "replace":
                at = data.draw(st.sampled_from(places(entries[index])))
                entries[index] = replaced(entries[index], at, data.draw(JSON))
            case "drop":
                del entries[index]
            case _:
                entries.insert(index, entries[index])
    path = written(tmp_path, entries)
    refusal, study = "", None
    try:
        study = Study.read(path)
    except ValueError as error:
        refusal = str(error)
    if study is None:
        assert refusal.startswith(str(path))
        assert refusal.isprintable()
        return
    for trial in study.trials():
        assert all(isinstance(value, float) for result in trial.results for value in result.metrics.values())
        assert (trial.error or "").isprintable()
    study.best()
    assert study.life.reason.isprintable()
    assert (study.outcome("1") or "").isprintable()
    assert usage(study.trials(), study.sittings, {"default": 1.0}).cost >= 0


def with_attribute(entries: list[dict[str, Any]], attribute: dict[str, Any]) -> list[dict[str, Any]]:
    """The ledger, where the trial that still runs has been given an attribute."""
    other = next(e for e in reversed(entries) if e["op_code"] == 8)
    assert other["trial_id"] == 2
    return [*entries, {**other, "user_attr": attribute}]


def test_an_error_in_a_ledger_does_not_steer_a_terminal(ledger: list[dict[str, Any]], tmp_path: Path) -> None:
    entries = with_attribute(ledger, {"error": "\x1b[2Jgone" + "x" * 10**6})
    error = Study.read(written(tmp_path, entries)).trial(2).error
    assert error is not None
    assert error.startswith("\N{REPLACEMENT CHARACTER}[2Jgone")
    assert len(error) <= 10_000


@pytest.mark.parametrize(
    "attribute",
    [
        {"params": [1]},
        {"seed": -1},
        {"result:10000": {"epochs": "1", "metrics": {}, "checkpoint": None, "seconds": 0}},
        {"result:10000": {"epochs": 1, "metrics": {}, "checkpoint": {"__reduce__": 1}, "seconds": 0}},
        {"result:10000": {"epochs": 1, "metrics": {"a": [1]}, "checkpoint": None, "seconds": 0}},
        {"phases": [{"name": "p", "start_epoch": 1e300, "thawed": "all"}]},
        {"rulings": [{"decision": "stop"}]},
        {"state": "running; rm -rf"},
    ],
)
def test_what_a_trial_cannot_have_is_refused(
    ledger: list[dict[str, Any]], tmp_path: Path, attribute: dict[str, Any]
) -> None:
    path = written(tmp_path, with_attribute(ledger, attribute))
    with pytest.raises(ValueError, match="an entry of it cannot be right") as error:
        Study.read(path)
    assert str(error.value).startswith(f"{path}: ")
