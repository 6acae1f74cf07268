import subprocess
import sys
from itertools import pairwise
from typing import get_args, get_type_hints

import pytest

from training.config import PhaseConfig, UnfreezingConfig
from training.schedules import SCHEDULES, Phase, describe, phases

EXPLICIT = [
    PhaseConfig(start=0, thaw=["head"]),
    PhaseConfig(start=0.5, thaw=["head", -1, 4]),
    PhaseConfig(start=1, thaw=["all"]),
]


def unfreezing(schedule: str, **settings: object) -> UnfreezingConfig:
    if schedule == "phases":
        settings.setdefault("phases", EXPLICIT)
    return UnfreezingConfig(schedule=schedule, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_blocks", [6, 24])
@pytest.mark.parametrize("epochs", [1.25, 3.0])
@pytest.mark.parametrize("depth", [1, 2, 6])
def test_contract(schedule: str, num_blocks: int, epochs: float, depth: int) -> None:
    settings = unfreezing(schedule, depth=depth)
    planned = phases(settings, num_blocks, epochs)
    assert planned == phases(settings, num_blocks, epochs)
    assert planned[0].start_epoch == 0
    assert all(a.start_epoch < b.start_epoch for a, b in pairwise(planned))
    assert planned[-1].start_epoch < epochs
    assert len({phase.name for phase in planned}) == len(planned)
    for phase in planned:
        assert list(phase.blocks) == sorted(set(phase.blocks) & set(range(num_blocks)))
        assert phase.head or phase.embeddings or phase.blocks
        assert describe(phase, num_blocks)
        boundary = phase.boundary(num_blocks)
        assert (boundary == -1) == phase.embeddings
        assert not set(phase.blocks) & set(range(boundary))
        assert boundary in {-1, num_blocks, *phase.blocks}


def test_every_schedule_of_the_settings_is_in_the_table() -> None:
    assert set(get_args(get_type_hints(UnfreezingConfig)["schedule"])) == set(SCHEDULES)


def test_head_top_full() -> None:
    assert phases(unfreezing("head"), 6, 2.0) == (Phase(name="head", start_epoch=0.0, blocks=()),)
    (top,) = phases(unfreezing("top", depth=2), 6, 2.0)
    assert (top.name, top.blocks, top.head, top.embeddings) == ("top-2", (4, 5), True, False)
    (full,) = phases(unfreezing("full"), 6, 2.0)
    assert full == Phase(name="full", start_epoch=0.0, blocks=(0, 1, 2, 3, 4, 5), embeddings=True)


def test_top_of_all_blocks_keeps_the_embeddings_frozen() -> None:
    (top,) = phases(unfreezing("top", depth=6), 6, 1.0)
    assert top.boundary(6) == 0
    assert describe(top, 6) == "head + blocks 0-5"


def test_gradual_thaws_from_the_top_over_the_first_half() -> None:
    planned = phases(unfreezing("gradual", depth=2), 6, 3.0)
    assert [(p.name, p.start_epoch, p.blocks) for p in planned] == [
        ("head", 0.0, ()),
        ("gradual-1", 0.75, (5,)),
        ("gradual-2", 1.5, (4, 5)),
    ]


def test_gradual_at_stated_points() -> None:
    planned = phases(unfreezing("gradual", depth=2, points=[0.2, 0.9]), 6, 10.0)
    assert [p.start_epoch for p in planned] == [0.0, 2.0, 9.0]


def test_explicit_phases() -> None:
    head, middle, everything = phases(unfreezing("phases"), 6, 3.0)
    assert (head.blocks, head.head) == ((), True)
    assert (middle.blocks, middle.start_epoch, middle.name) == ((4, 5), 0.5, "phase-2")
    assert everything.blocks == tuple(range(6))
    assert everything.embeddings
    assert everything.head


def test_explicit_phase_without_the_head() -> None:
    (phase,) = phases(unfreezing("phases", phases=[PhaseConfig(start=0, thaw=[-6, "embeddings"])]), 6, 1.0)
    assert phase == Phase(name="phase-1", start_epoch=0.0, blocks=(0,), head=False, embeddings=True)


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (Phase(name="", start_epoch=0.0, blocks=()), "head"),
        (Phase(name="", start_epoch=0.0, blocks=(5,)), "head + block 5"),
        (Phase(name="", start_epoch=0.0, blocks=(4, 5)), "head + blocks 4-5"),
        (Phase(name="", start_epoch=0.0, blocks=(0, 2, 3)), "head + blocks 0, 2-3"),
        (Phase(name="", start_epoch=0.0, blocks=(5,), head=False), "block 5"),
        (Phase(name="", start_epoch=0.0, blocks=(0,), embeddings=True), "head + block 0 + embeddings"),
        (Phase(name="", start_epoch=0.0, blocks=tuple(range(6)), embeddings=True), "all"),
    ],
)
def test_describe(phase: Phase, words: str) -> None:
    assert describe(phase, 6) == words


def test_boundary() -> None:
    assert Phase(name="", start_epoch=0.0, blocks=()).boundary(6) == 6
    assert Phase(name="", start_epoch=0.0, blocks=(2, 5)).boundary(6) == 2
    assert Phase(name="", start_epoch=0.0, blocks=(), embeddings=True).boundary(6) == -1


@pytest.mark.parametrize("schedule", ["top", "gradual"])
def test_depth_deeper_than_the_model(schedule: str) -> None:
    with pytest.raises(ValueError, match="deeper") as error:
        phases(unfreezing(schedule, depth=9), 6, 1.0)
    assert str(error.value) == (
        "unfreezing.depth: 9 is deeper than the model, which has 6 blocks; use 1 to 6"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            unfreezing("gradual", depth=2, points=[0.5]),
            r"unfreezing.points: 1 points for unfreezing.depth 2",
        ),
        (unfreezing("gradual", depth=2, points=[0.5, 0.5]), r"unfreezing.points: .* must ascend"),
        (unfreezing("phases", phases=[]), r"unfreezing.phases: .* needs a list of phases"),
        (
            unfreezing("phases", phases=[PhaseConfig(start=1, thaw=["head"])]),
            r"unfreezing.phases\[0\].start: .* at epoch 1; use 0",
        ),
        (
            unfreezing("phases", phases=[*EXPLICIT, PhaseConfig(start=0.7, thaw=["head"])]),
            r"unfreezing.phases\[3\].start: 0.7 is not after .* starts at 1;",
        ),
        (
            unfreezing("phases", phases=[*EXPLICIT, PhaseConfig(start=2, thaw=["head"])]),
            r"unfreezing.phases\[3\].start: 2 is not before the end of training at epoch 2",
        ),
        (
            unfreezing("phases", phases=[PhaseConfig(start=0, thaw=[6])]),
            r"unfreezing.phases\[0\].thaw: block 6 is not in the model, which has 6 blocks; use -6 to 5",
        ),
        (
            unfreezing("phases", phases=[PhaseConfig(start=0, thaw=[-7])]),
            r"unfreezing.phases\[0\].thaw: block -7 is not in the model",
        ),
    ],
)
def test_users_mistakes(settings: UnfreezingConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phases(settings, 6, 2.0)


def test_import_is_light() -> None:
    heavy = ["torch", "transformers", "numpy"]
    code = f"import sys, training.schedules; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
