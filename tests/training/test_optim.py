import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.conftest import tiny_model
from training.blocks import Blocks
from training.config import TrainingConfig
from training.optim import groups, lr_factor

BLOCKS = Blocks(tiny_model())
SHAPES = {name: parameter.shape for name, parameter in BLOCKS.model.named_parameters()}


def factors(total: int, warmup_ratio: float, schedule: str) -> list[float]:
    training = TrainingConfig(warmup_ratio=warmup_ratio, lr_schedule=schedule)  # type: ignore[arg-type]
    return course(total, training)


def course(total: int, training: TrainingConfig, *starts: int) -> list[float]:
    """Factors of a trial whose later phases begin at `starts`."""
    return [
        lr_factor(
            step,
            total_steps=total,
            phase_start=max(start for start in (0, *starts) if start <= step),
            training=training,
        )
        for step in range(total)
    ]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "polynomial"])
@settings(deadline=None)
@given(total=st.integers(1, 300), ratio=st.floats(0, 0.99))
def test_rises_then_falls_and_is_never_zero(schedule: str, total: int, ratio: float) -> None:
    values = factors(total, ratio, schedule)
    assert all(0 < value <= 1 for value in values)
    top = values.index(max(values))
    assert all(a < b for a, b in pairwise(values[: top + 1]))
    assert all(a >= b for a, b in pairwise(values[top:]))


def test_shapes() -> None:
    assert factors(10, 0.0, "constant") == [1.0] * 10
    assert factors(4, 0.0, "linear") == [1.0, 0.75, 0.5, 0.25]
    assert factors(6, 0.3, "linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert factors(4, 0.0, "cosine") == pytest.approx(
        [1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]
    )
    assert factors(4, 0.5, "constant") == [0.5, 1.0, 1.0, 1.0]


def test_polynomial_decay() -> None:
    training = TrainingConfig(warmup_ratio=0.0, lr_schedule="polynomial", lr_power=3.0)
    assert course(4, training) == [1.0, 0.75**3, 0.5**3, 0.25**3]
    assert course(4, TrainingConfig(warmup_ratio=0.0, lr_schedule="polynomial")) == [
        1.0,
        0.5625,
        0.25,
        0.0625,
    ]


def test_warm_up_by_steps_takes_the_place_of_the_ratio() -> None:
    training = TrainingConfig(warmup_ratio=0.9, warmup_steps=4, lr_schedule="constant")
    assert course(8, training) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    training = TrainingConfig(warmup_ratio=0.9, warmup_steps=0, lr_schedule="constant")
    assert course(3, training) == [1.0] * 3
    # Longer than the trial: it rises to the end.
    training = TrainingConfig(warmup_steps=100, lr_schedule="linear")
    assert course(4, training) == [0.25, 0.5, 0.75, 1.0]


def test_rewarm_up_after_each_thaw() -> None:
    training = TrainingConfig(warmup_steps=2, rewarmup_steps=4, lr_schedule="constant")
    assert course(12, training, 3, 8) == [
        0.5, 1.0, 1.0,  # the first phase has the warm-up alone
        0.25, 0.5, 0.75, 1.0, 1.0,
        0.25, 0.5, 0.75, 1.0,
    ]  # fmt: skip
    # On top of the schedule, which goes on underneath.
    training = TrainingConfig(warmup_steps=0, rewarmup_steps=2, lr_schedule="linear")
    assert course(4, training, 2) == [1.0, 0.75, 0.25, 0.25]
    assert course(4, TrainingConfig(warmup_steps=0), 2) == [1.0, 0.75, 0.5, 0.25]


def test_the_warm_up_has_as_many_steps_as_its_ratio_says() -> None:
    # 0.07 * 100 is a little more than 7 in binary.
    for ratio, total, steps in ((0.07, 100, 7), (0.06, 50, 3), (0.1, 30, 3), (0.1, 31, 4), (0.06, 1, 1)):
        assert factors(total, ratio, "constant").index(1.0) == steps - 1


def test_groups_law() -> None:
    """Each name once; rate by height, decay by dimension, age as given; one group for one such triple."""
    training = TrainingConfig(learning_rate=1e-3, layerwise_lr_decay=0.5, weight_decay=0.1)
    ages = {name: 4 for name in SHAPES if ".layer.2." in name} | {"classifier.weight": 7}
    made = groups(SHAPES, blocks=BLOCKS, shapes=SHAPES, ages=ages, training=training)
    assert sorted(name for group in made for name in group.names) == sorted(SHAPES)
    for group in made:
        for name in group.names:
            assert group.learning_rate == 1e-3 * 0.5 ** BLOCKS.height(BLOCKS.unit(name))
            assert group.weight_decay == (0.1 if len(SHAPES[name]) > 1 else 0.0)
            assert group.age == ages.get(name, 0)
    triples = [(group.learning_rate, group.weight_decay, group.age) for group in made]
    assert len(set(triples)) == len(triples)
    rates = {group.learning_rate for group in made}
    assert rates == {1e-3, 5e-4, 2.5e-4, 1.25e-4}
    assert groups(SHAPES, blocks=BLOCKS, shapes=SHAPES, ages=ages, training=training) == made


def test_groups_of_one_rate() -> None:
    made = groups(SHAPES, blocks=BLOCKS, shapes=SHAPES, ages={}, training=TrainingConfig())
    assert [(group.weight_decay > 0, group.age) for group in made] in (
        [(True, 0), (False, 0)],
        [(False, 0), (True, 0)],
    )
    assert all(
        "bias" not in name and "LayerNorm" not in name
        for group in made
        if group.weight_decay
        for name in group.names
    )
