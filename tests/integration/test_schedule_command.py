"""`thaw schedule`: a picture, one JSON document, or one line that says what is wrong."""

from __future__ import annotations

import json

import pytest

from tests.cli import Thaw, caller
from training.schedules import SCHEDULES


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thaw:
    monkeypatch.setenv("COLUMNS", "72")
    return caller(monkeypatch, capsys)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "phases"])
def test_draws_every_schedule(thaw: Thaw, name: str) -> None:
    outcome = thaw("schedule", name, "--blocks", "12", "--epochs", "2")
    assert (outcome.code, outcome.err) == (0, "")
    assert "  block 11  " in outcome.out
    assert max(map(len, outcome.out.splitlines())) == 72


def test_options_are_the_settings(thaw: Thaw) -> None:
    outcome = thaw("schedule", "gradual", "--depth", "2", "--points", "0.25,0.5", "--epochs", "2", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert (document["schedule"], document["num_blocks"], document["epochs"]) == ("gradual", 6, 2.0)
    assert document["phases"][2] == {
        "name": "gradual-2",
        "start_epoch": 1.0,
        "blocks": [4, 5],
        "head": True,
        "embeddings": False,
        "thawed": "head + blocks 4-5",
    }
    assert [phase["start_epoch"] for phase in document["phases"]] == [0.0, 0.5, 1.0]


def test_seed_and_interval(thaw: Thaw) -> None:
    def drawn(*options: str) -> list[tuple[float, list[int]]]:
        document = json.loads(thaw("schedule", "lisa", "--epochs", "4", "--json", *options).out)
        return [(phase["start_epoch"], phase["blocks"]) for phase in document["phases"]]

    assert drawn() == drawn("--seed", "0", "--interval", "0.25") != drawn("--seed", "1")
    assert len(drawn("--interval", "4")) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gradul"], "gradul: unknown schedule; did you mean gradual?"),
        (["bottomup"], "bottomup: unknown schedule; did you mean bottom-up?"),
        (["phases"], "phases: its phases are those that a sweep file lists; draw head, top, "),
        (["top", "--depth", "9"], "--depth: 9 is deeper than the model, which has 6 blocks; use 1 to 6"),
        (["top", "--depth", "0"], "--depth: must be >= 1, got 0"),
        (["gradual", "--points", "0.2,0.4"], "--points: 2 points for --depth 1; give one for each block "),
        (["gradual", "--points", "2"], "--points[0]: must be < 1, got 2"),
        (["gradual", "--points", "0.2;0.4"], "--points: must be numbers with commas between them, such as "),
        (["lisa", "--interval", "0"], "--interval: must be > 0, got 0"),
        (["full", "--epochs", "nan"], "--epochs: must be a number > 0 and <= 100000, got .nan"),
    ],
)
def test_mistakes(thaw: Thaw, args: list[str], message: str) -> None:
    outcome = thaw("schedule", *args)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1
