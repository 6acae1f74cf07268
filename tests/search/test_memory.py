"""The estimate of a sweep's phases, by its file alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search import loading, memory
from tests.cli import caller, write_sweep
from training.memory import DEVICE_PARTS


def test_every_schedule_at_its_deepest_and_largest(tmp_path: Path) -> None:
    found = memory.rows(loading.load("quickstart", []))
    phases = [(row.schedule, row.phase) for row in found]
    assert phases[:2] == [("head", "head"), ("top", "top-6")]
    assert ("gradual", "gradual-6") in phases
    assert phases[-1] == ("full", "full")
    assert {(row.micro_batch, row.tokens) for row in found} == {(32, 64)}
    needs = {row.phase: row.memory for row in found}
    assert needs["head"].device < needs["gradual-1"].device < needs["gradual-6"].device < needs["full"].device
    # A batch of 64 on one worker accumulates: the gradients are there while the activations are.
    assert needs["full"].gradients == 4 * needs["full"].thawed
    assert memory.limit(found).startswith("schedule full, phase full needs the most")


def test_a_narrow_terminal_loses_the_least_columns_and_cuts_none() -> None:
    found = memory.rows(loading.load("quickstart", []))
    made = memory.table(found, width=80)
    headers = [column.header for column in made.columns]
    assert headers == ["schedule", "phase", "thawed", "parameters", "activations", "worker", "host"]
    assert len(memory.table(found, width=200).columns) == 6 + len(DEVICE_PARTS)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    thaw = caller(monkeypatch, capsys)
    ended = thaw("memory", write_sweep(tmp_path), "--json", "--set", "training.precision=bf16")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)
    assert [row["phase"] for row in rows] == ["head", "top-1"]
    need = rows[1]["memory"]
    assert need["masters"] == 4 * need["thawed"]
    assert need["total"] == need["device"] + need["host"]
    assert "needs the most" in thaw("memory", tmp_path / "tiny.yaml").out
