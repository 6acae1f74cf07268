"""The arithmetic of partly thawed training."""

from __future__ import annotations

import pytest

from training.config import UnfreezingConfig
from training.cost import compute
from training.schedules import Phase, phases


def taken(schedule: str, epochs: float, depth: int = 1) -> float:
    unfreezing = UnfreezingConfig(schedule=schedule, depth=depth)  # type: ignore[arg-type]
    return compute(phases(unfreezing, 6, 4.0), 6, epochs)


def test_full_training_is_the_unit() -> None:
    assert taken("full", 4) == pytest.approx(4)
    assert taken("full", 0.5) == pytest.approx(0.5)
    assert taken("full", 0) == 0


def test_the_top_blocks_cost_their_share_and_the_head_next_to_nothing() -> None:
    assert taken("top", 4, depth=2) == pytest.approx(4 * 2 / 6, rel=0.05)
    assert 0 < taken("head", 4) < 4 / 50


def test_frozen_blocks_above_a_thawed_one_run_but_take_no_gradient_of_their_weights() -> None:
    lowest = (Phase(name="p", start_epoch=0, blocks=(0,)),)
    assert compute(lowest, 6, 1) == pytest.approx((2 * 6 + 1) / 18, rel=0.02)


def test_phases_are_charged_for_as_long_as_they_last() -> None:
    both = (Phase(name="a", start_epoch=0, blocks=()), Phase(name="b", start_epoch=2, blocks=tuple(range(6))))
    head, full = compute(both[:1], 6, 1), 1.0
    assert compute(both, 6, 2) == pytest.approx(2 * head)
    assert compute(both, 6, 3) == pytest.approx(2 * head + full)
    assert compute(both, 6, 1) == pytest.approx(head), "what comes later is not charged yet"
