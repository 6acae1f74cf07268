"""The arithmetic of the switch benchmark."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.benchmarks.marks import Mark, marking, read
from tests.benchmarks.switch import SHARES, cold_start, rival_starts, summary, switches

WORKER, DRIVER = 1, 2


def marks(*told: tuple[float, int, str]) -> list[Mark]:
    return [Mark(at=at, process=process, text=text) for at, process, text in told]


def trial(number: int, at: float) -> list[Mark]:
    """A trial that is handed out at `at`, and takes 10 seconds from its first step to its end."""
    return marks(
        (at, DRIVER, f"trial {number} starts: {{}}"),
        (at + 0.01, WORKER, f"trial {number} taken"),
        (at + 0.03, WORKER, "restored at step 0"),
        (at + 0.06, WORKER, "engine of phase head built"),
        (at + 0.10, WORKER, "step 1 done"),
        (at + 10.1, WORKER, f"trial {number} ended"),
        (at + 10.2, DRIVER, f"trial {number}: complete"),
    )


def test_a_switch_is_from_a_trials_end_to_the_next_ones_first_step() -> None:
    found = switches([*trial(0, 0.0), *trial(1, 10.5), *trial(12, 21.5)])
    assert [start.trial for start in found] == [1, 12]
    assert found[0].seconds == pytest.approx(0.5)
    assert found[1].seconds == pytest.approx(1.0)
    assert list(found[1].shares) == list(SHARES)
    assert list(found[1].shares.values()) == pytest.approx([0.1, 0.8, 0.01, 0.02, 0.03, 0.04])
    assert switches([*trial(0, 0.0), *trial(1, 10.5), *trial(12, 21.5)], without=1) == found[1:]
    said = summary(found)
    assert (said["starts"], said["median_s"], said["worst_s"]) == (
        2,
        pytest.approx(0.75),
        pytest.approx(1.0),
    )
    assert said["shares_s"]["restore"] == pytest.approx(0.02)


def test_a_trial_that_never_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="no mark 'step'"):
        switches([*trial(0, 0.0), *trial(1, 10.5)[:4]])


def test_cold_start_is_from_the_connection_to_the_first_step() -> None:
    before = marks(
        (5.0, DRIVER, "connected"),
        (7.0, 3, "gang asked for"),
        (12.0, WORKER, "worker started"),
        (15.0, WORKER, "worker ready"),
    )
    found = cold_start([*before, *trial(0, 15.5)])
    assert found.seconds == pytest.approx(10.6)
    assert sum(found.shares.values()) == pytest.approx(found.seconds)
    assert found.shares["imports"] == pytest.approx(3.0)


def test_the_rivals_trials_are_told_apart() -> None:
    told = marks((0.0, DRIVER, "connected"))
    for number, at in ((0, 20.0), (1, 50.0)):
        told += marks(
            (at, number, f"worker of trial {number} started"),
            (at + 3, number, "imported"),
            (at + 5, number, "loaded"),
            (at + 6, number, "engine built"),
            (at + 7, number, "step done"),
            (at + 9, number, f"trial {number} ended"),
        )
    cold, warm = rival_starts(told)
    assert cold.seconds == 27
    assert [start.seconds for start in warm] == [28]
    assert warm[0].shares == {"Ray": 21, "imports": 3, "model and data": 2, "engine": 1, "first step": 1}


def test_marks_are_what_is_logged(tmp_path: Path) -> None:
    with marking(tmp_path / "marks"):
        logging.getLogger("training.loop").debug("step %d done", 3)
    logging.getLogger("training.loop").debug("step 4 done")
    assert [found.text for found in read(tmp_path / "marks")] == ["step 3 done"]
