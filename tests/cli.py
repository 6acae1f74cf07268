"""The command line in this process, for tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import launch
from tests.conftest import MODEL

ROWS = [{"text": f"sentence number {i}", "label": "pos" if i % 2 else "neg"} for i in range(8)]


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str


Thaw = Callable[..., Outcome]


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thaw:
    """Runs a command as the console script would."""

    def call(*args: str | Path) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["thaw", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            launch.main()
        code = ended.value.code or 0
        assert isinstance(code, int), code
        return Outcome(code, *capsys.readouterr())

    return call


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_sweep(directory: Path, **sections: Any) -> Path:
    """A sweep file that is right, with its data; keywords replace whole sections."""
    write_rows(directory / "train.jsonl", ROWS)
    write_rows(directory / "validation.jsonl", ROWS[:4])
    raw: dict[str, Any] = {
        "name": "tiny",
        "model": {"name": MODEL},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "parameters": {
            "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3},
            "unfreezing.schedule": {"values": ["head", "top"]},
        },
        "search": {"metric": {"name": "eval/accuracy", "goal": "maximize"}, "trials": 4},
        "tracking": {"wandb": None},
    }
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw | sections))
    return path
