"""The gates: style, types, layers, a fast command line, and nothing of this machine in the tree."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import launch
from search.schema import json_schema
from tests.conftest import REPOSITORY
from training.config import TrainingConfig

HEAVY = {"ray", "torch", "optuna", "wandb", "transformers", "datasets", "deepspeed", "sklearn"}


def tool(name: str, *args: str) -> None:
    program = Path(sys.executable).with_name(name)
    ended = subprocess.run([str(program), *args], capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "command", ["ruff check .", "ruff format --check .", "mypy", "mypy launch.py", "lint-imports"]
)
def test_the_gate_is_open(command: str) -> None:
    tool(*command.split())


def test_help_comes_at_once() -> None:
    def took_s() -> float:
        """Of CPU, so that whatever else runs on the machine does not count."""
        began = sum(os.times()[2:4])
        subprocess.run(
            [sys.executable, "launch.py", "--help"], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL
        )
        return sum(os.times()[2:4]) - began

    assert statistics.median(took_s() for _ in range(3)) < 1


@pytest.mark.parametrize(
    "module", ["launch", "search.loading", "search.results.leaderboard", "search.progress"]
)
def test_what_must_stay_light_imports_nothing_heavy(module: str) -> None:
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert HEAVY.isdisjoint(json.loads(ended.stdout))


def tracked() -> list[Path]:
    """The project's files: what git tracks or would, or without git all that is not hidden."""
    asked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    if asked.returncode == 0:
        found = [REPOSITORY / name for name in asked.stdout.split("\0") if name]
    else:
        found = [
            path
            for path in REPOSITORY.rglob("*")
            if not any(
                part.startswith(".") or part in ("__pycache__", "build", "dist", "runs")
                for part in path.relative_to(REPOSITORY).parts
            )
        ]
    return [path for path in found if path.is_file()]


def test_no_file_knows_this_machine() -> None:
    files = tracked()
    assert REPOSITORY / "launch.py" in files
    marks = [f"/{name}/".encode() for name in ("work", "farm")]
    found = [
        (str(path.relative_to(REPOSITORY)), mark.decode())
        for path in files
        for mark in marks
        if mark in path.read_bytes()
    ]
    assert found == []


def test_the_readme_names_every_command() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    for command in launch.app.registered_commands:
        assert command.callback
        name = command.name or command.callback.__name__
        assert f"`{name}" in readme or f"launch.py {name}" in readme or f"thaw {name}" in readme, name


def leaves(section: type, prefix: str = "") -> list[str]:
    hints = get_type_hints(section)
    found: list[str] = []
    for field in fields(section):
        inner = hints[field.name]
        if isinstance(inner, type) and is_dataclass(inner):
            found += leaves(inner, f"{prefix}{field.name}.")
        else:
            found.append(f"{prefix}{field.name}")
    return found


def test_every_setting_of_the_training_is_in_the_schema() -> None:
    schema = json_schema()
    paths = leaves(TrainingConfig)
    assert {"learning_rate", "batch_size", "zero.stage", "unfreezing.schedule", "unfreezing.depth"} <= set(
        paths
    )
    searched = schema["properties"]["parameters"]["properties"]
    for path in paths:
        assert path in searched
        assert searched[path]["description"]
        place: dict[str, Any] = schema["$defs"]["TrainingConfig"]
        *outer, last = path.split(".")
        for part in outer:
            reference = place["properties"][part]
            name = reference.get("$ref", "").removeprefix("#/$defs/")
            place = schema["$defs"][name]
        assert place["properties"][last]["description"]
