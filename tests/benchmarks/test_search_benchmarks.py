"""The search's benchmarks run from the command line, on the tables that the tests bring along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CURVES = ROOT / "tests" / "curves"


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quality_finds_thaw_above_chance_and_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    arguments = ["tests.benchmarks.search_quality", "--curves", str(CURVES), "--out", str(out)]
    arguments += ["--seeds", "1", "--jobs", "2", "--methods", "random", "thaw"]
    printed = run(*arguments)
    found = json.loads(out.read_text())
    assert found["budgets"] == [3, 7.5, 15, 30]
    assert found["cells"] == 3
    assert "random" in printed
    assert "mean rank" in printed
    for figures in found["methods"].values():
        assert figures["mean"] == sorted(figures["mean"], reverse=True), "regret never grows"
    thaw, random = (sum(found["methods"][name]["mean"]) for name in ("thaw", "random"))
    assert thaw < 0.8 * random

    partial = tmp_path / "results.json.partial"
    lines = partial.read_text().splitlines()
    partial.write_text("\n".join(lines[1:]) + "\n")
    assert run(*arguments) == printed, "the same sweep gives the same"
    assert sorted(partial.read_text().splitlines()) == sorted(lines)


@pytest.mark.parametrize("module", ["search_quality", "ask_tell"])
def test_needs_neither_ray_nor_torch(module: str) -> None:
    heavy = "('torch', 'ray', 'deepspeed')"
    code = f"import sys, tests.benchmarks.{module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[]", done.stderr


def test_ask_tell() -> None:
    assert "auto, 100 trials: ask + tell" in run("tests.benchmarks.ask_tell", "--trials", "100")
