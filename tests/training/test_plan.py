import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import PhaseConfig, TrainingConfig, UnfreezingConfig
from training.plan import Plan, plan


def course(
    epochs: float = 2.0, *, n: int = 44, unfreezing: UnfreezingConfig | None = None, **training: object
) -> Plan:
    settings = TrainingConfig(
        epochs=epochs,
        batch_size=8,
        unfreezing=unfreezing or UnfreezingConfig(),
        **training,  # type: ignore[arg-type]
    )
    return plan(settings, num_blocks=3, num_examples=n)


def shape(made: Plan) -> list[tuple[str, int, int]]:
    return [(stretch.phase.name, stretch.start, stretch.stop) for stretch in made.stretches]


def test_one_phase() -> None:
    made = course()
    assert (made.steps_per_epoch, made.total_steps) == (6, 12)
    assert shape(made) == [("full", 0, 12)]
    assert made.evaluations == {6: 1.0, 12: 2.0}


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "evaluations"),
    [
        (1.5, 1, {6: 1.0, 9: 1.5}),
        (1.0, 2, {3: 0.5, 6: 1.0}),
        (1.0, 4, {2: 0.25, 3: 0.5, 4: 0.75, 6: 1.0}),
        (0.5, 1, {3: 0.5}),
        (0.01, 1, {1: 0.01}),
        (0.4, 3, {2: 1 / 3, 3: 0.4}),
        (1.1, 1, {6: 1.0, 7: 1.1}),
        # More evaluations than steps: each step once, at the last of its points.
        (0.5, 12, {1: 1 / 6, 2: 5 / 12, 3: 0.5}),
    ],
)
def test_evaluations(epochs: float, per_epoch: int, evaluations: dict[int, float]) -> None:
    assert course(epochs, evaluations_per_epoch=per_epoch).evaluations == pytest.approx(evaluations)


def test_phases_that_are_too_short_collapse() -> None:
    starts = [(0.0, ["head"]), (0.01, [2]), (0.02, [1]), (1.0, [0]), (1.999, ["all"])]
    phases = [PhaseConfig(start=start, thaw=thaw) for start, thaw in starts]  # type: ignore[arg-type]
    made = course(unfreezing=UnfreezingConfig(schedule="phases", phases=phases))
    # The first, the second and the last hold no step; the steps are all there.
    assert shape(made) == [("phase-3", 0, 6), ("phase-4", 6, 12)]


def test_gradual() -> None:
    made = course(unfreezing=UnfreezingConfig(schedule="gradual", depth=2))
    assert shape(made) == [("head", 0, 3), ("gradual-1", 3, 6), ("gradual-2", 6, 12)]


def test_a_schedule_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"unfreezing.depth: 4 is deeper than the model"):
        course(unfreezing=UnfreezingConfig(schedule="top", depth=4))


def test_examples() -> None:
    made = course()
    assert [made.examples(step) for step in (0, 1, 5, 6, 7, 12)] == [0, 8, 40, 44, 52, 88]


@given(
    n=st.integers(1, 200),
    epochs=st.floats(0.01, 5),
    per_epoch=st.integers(1, 9),
    depth=st.integers(1, 3),
    batch_size=st.integers(1, 50),
)
def test_laws(n: int, epochs: float, per_epoch: int, depth: int, batch_size: int) -> None:
    training = TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        evaluations_per_epoch=per_epoch,
        unfreezing=UnfreezingConfig(schedule="gradual", depth=depth),
    )
    made = plan(training, num_blocks=3, num_examples=n)
    assert made == plan(training, num_blocks=3, num_examples=n)
    # Stretches cover every step once, in order.
    assert [step for s in made.stretches for step in range(s.start, s.stop)] == list(range(made.total_steps))
    assert made.total_steps >= 1
    assert all(1 <= step <= made.total_steps for step in made.evaluations)
    assert list(made.evaluations.values()) == sorted(made.evaluations.values())
    assert list(made.evaluations) == sorted(made.evaluations)
    assert made.evaluations[made.total_steps] == epochs
    seen = [made.examples(step) for step in range(made.total_steps + 1)]
    assert seen == sorted(set(seen))
    assert made.examples(made.steps_per_epoch) == n


def test_an_end_in_the_middle_of_a_step_is_evaluated_once() -> None:
    # 1.5 epochs of 63 steps are 94.5 steps: the last evaluation is after step 95, and none is after 94.
    settings = TrainingConfig(epochs=1.5, evaluations_per_epoch=2, batch_size=32)
    course = plan(settings, num_blocks=6, num_examples=2000)
    assert course.evaluations == {32: 0.5, 63: 1.0, 95: 1.5}
