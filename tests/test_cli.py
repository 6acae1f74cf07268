"""The command line itself: help, options, the schema."""

from __future__ import annotations

import copy
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

import launch
from search.commands.options import where
from search.schema import json_schema
from tests.cli import Thaw, caller, write_sweep
from tests.conftest import REPOSITORY

COMMANDS = {"run", "resume", "trials", "best", "export", "schema"}


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thaw:
    monkeypatch.setenv("COLUMNS", "200")
    return caller(monkeypatch, capsys)


def commands() -> set[str]:
    return {str(c.name or c.callback.__name__) for c in launch.app.registered_commands if c.callback}


def test_help_names_every_command(thaw: Thaw) -> None:
    outcome = thaw("--help")
    assert outcome.code == 0
    assert commands() >= COMMANDS
    for command in commands():
        assert f" {command} " in outcome.out
    assert "--debug" in outcome.out


def test_every_command_and_option_says_what_it_is_for() -> None:
    for command in launch.app.registered_commands:
        assert command.callback
        assert command.callback.__doc__
        hints = get_type_hints(command.callback, include_extras=True)
        for name in inspect.signature(command.callback).parameters:
            assert hints[name].__metadata__[0].help, (command.callback.__name__, name)


def test_storage_comes_from_the_environment(
    thaw: Thaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THAW_STORAGE", str(tmp_path / "elsewhere"))
    assert f"in {tmp_path}/elsewhere;" in thaw("trials", "none").err
    assert f"in {tmp_path}/here;" in thaw("trials", "none", "--storage", tmp_path / "here").err
    monkeypatch.delenv("THAW_STORAGE")
    monkeypatch.chdir(tmp_path)
    assert f"in {tmp_path}/runs;" in thaw("trials", "none").err


def test_the_console_script_is_the_same_program(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("thaw")
    ended = subprocess.run([str(script), "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert ended.returncode == 0
    assert "quickstart" not in ended.stderr
    assert "export" in ended.stdout


def test_commands_to_go_on_with_can_be_pasted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert where(tmp_path / "runs") == ""
    assert where(tmp_path / "my runs") == f" --storage '{tmp_path}/my runs'"


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    """As in `thaw schema | head -1`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        ended = subprocess.run(
            [sys.executable, str(REPOSITORY / "launch.py"), "schema"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert "Traceback" not in ended.stderr


class Wrong(Exception):
    """A document that the schema refuses."""


def validate(schema: Mapping[str, Any], value: Any, root: Mapping[str, Any], at: str = "") -> None:
    """The part of JSON Schema that Thaw's uses; a keyword that is not known here fails."""
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
        "integer": int, "number": (int, float),
    }  # fmt: skip
    for keyword, law in schema.items():
        match keyword:
            case "$ref":
                name = law.removeprefix("#/$defs/")
                validate(root["$defs"][name], value, root, at)
            case "anyOf":
                errors = []
                for alternative in law:
                    try:
                        validate(alternative, value, root, at)
                        break
                    except Wrong as error:
                        errors.append(str(error))
                else:
                    raise Wrong(f"{at}: {errors}")
            case "type":
                fits = isinstance(value, kinds[law]) and not (isinstance(value, bool) and law != "boolean")
                if not fits:
                    raise Wrong(f"{at}: {value!r} is not {law}")
            case "enum" if value not in law:
                raise Wrong(f"{at}: {value!r} is not one of {law}")
            case "const" if value != law:
                raise Wrong(f"{at}: {value!r} is not {law}")
            case "required" if isinstance(value, dict):
                for name in law:
                    if name not in value:
                        raise Wrong(f"{at}: {name} is missing")
            case "properties" if isinstance(value, dict):
                for name, inner in law.items():
                    if name in value:
                        validate(inner, value[name], root, f"{at}.{name}")
            case "additionalProperties" if isinstance(value, dict):
                for name in set(value) - set(schema.get("properties", ())):
                    if law is False:
                        raise Wrong(f"{at}.{name}: unknown")
                    if law is not True:
                        validate(law, value[name], root, f"{at}.{name}")
            case "items" if isinstance(value, list):
                for i, inner in enumerate(value):
                    validate(law, inner, root, f"{at}[{i}]")
            case "minimum" if isinstance(value, int | float) and value < law:
                raise Wrong(f"{at}: {value} < {law}")
            case "exclusiveMinimum" if isinstance(value, int | float) and value <= law:
                raise Wrong(f"{at}: {value} <= {law}")
            case "maximum" if isinstance(value, int | float) and value > law:
                raise Wrong(f"{at}: {value} > {law}")
            case "exclusiveMaximum" if isinstance(value, int | float) and value >= law:
                raise Wrong(f"{at}: {value} >= {law}")
            case "minLength" | "minItems" | "minProperties" if hasattr(value, "__len__") and len(value) < law:
                raise Wrong(f"{at}: too short")
            case _:
                assert keyword in {
                    "$schema", "$defs", "title", "description", "default", "pattern", "const", "enum",
                    "required", "properties", "additionalProperties", "items", "minimum", "maximum",
                    "exclusiveMinimum", "exclusiveMaximum", "minLength", "minItems", "minProperties",
                }, keyword  # fmt: skip


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """As the real program prints it."""
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), "schema"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stderr == ""
    printed = json.loads(ended.stdout)
    assert printed == json_schema()
    assert isinstance(printed, dict)
    return printed


def quickstart() -> dict[str, Any]:
    loaded = yaml.safe_load((REPOSITORY / "search" / "sweeps" / "quickstart.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_the_schema_takes_sweeps_that_are_right(schema: dict[str, Any], tmp_path: Path) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    validate(schema, quickstart(), schema)
    validate(schema, yaml.safe_load(write_sweep(tmp_path).read_text()), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("nmae", "x"),
        ("training.learnin_rate", 1.0),
        ("training.zero.stages", 2),
        ("training.precision", "fp8"),
        ("parameters.learnin_rate", {"value": 1.0}),
        ("parameters.batch_size", {"valeus": [1]}),
        ("parameters.batch_size", {"values": ["many"]}),
        ("search.sampler", "grids"),
        ("search.scheduler", {"type": "asha", "eta": 3}),
        ("search.trials", 0),
        ("search.metric.goal", "up"),
        ("tracking.mlflow", {}),
        ("data.limit.training", 5),
    ],
)
def test_the_schema_refuses_what_is_wrong(schema: dict[str, Any], path: str, value: Any) -> None:
    sweep = copy.deepcopy(quickstart())
    *outer, last = path.split(".")
    place = sweep
    for part in outer:
        place = place.setdefault(part, {})
    place[last] = value
    with pytest.raises(Wrong, match=last):
        validate(schema, sweep, schema)


def test_the_schema_refuses_a_sweep_without_data(schema: dict[str, Any]) -> None:
    sweep = quickstart()
    del sweep["data"]
    with pytest.raises(Wrong, match="data is missing"):
        validate(schema, sweep, schema)


def test_the_end_of_a_process_looks_through_nothing() -> None:
    code = (
        "import atexit, gc, sys; atexit.register(lambda: print('frozen', gc.get_freeze_count() > 1000))\n"
        "import launch; sys.argv = ['thaw', '--help']; launch.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.endswith("frozen True\n"), done
