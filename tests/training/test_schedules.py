import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from tests.training.conftest import MakeTrial, Recorder
from training.config import PhaseConfig, UnfreezingConfig
from training.reporter import Verdict
from training.schedules import SCHEDULES, Phase, describe, phases
from training.workspace import Workspace

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
    planned = phases(settings, num_blocks, epochs, 3)
    assert planned == phases(settings, num_blocks, epochs, 3)
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


def test_bottom_up_thaws_from_the_bottom_when_gradual_thaws_from_the_top() -> None:
    planned = phases(unfreezing("bottom-up", depth=2), 6, 3.0)
    assert [(p.name, p.start_epoch, p.blocks) for p in planned] == [
        ("head", 0.0, ()),
        ("bottom-up-1", 0.75, (0,)),
        ("bottom-up-2", 1.5, (0, 1)),
    ]
    assert all(p.head for p in planned)
    last, mirrored = (phases(unfreezing(s, depth=6), 6, 3.0)[-1] for s in ("bottom-up", "gradual"))
    assert (
        (last.blocks, last.embeddings) == (mirrored.blocks, mirrored.embeddings) == (tuple(range(6)), False)
    )
    points = phases(unfreezing("bottom-up", depth=2, points=[0.2, 0.9]), 6, 10.0)
    assert [p.start_epoch for p in points] == [0.0, 2.0, 9.0]


def test_chain_thaw_has_each_layer_alone_and_then_all() -> None:
    planned = phases(unfreezing("chain-thaw"), 4, 3.5)
    assert [(p.name, describe(p, 4)) for p in planned] == [
        ("head", "head"),
        ("embeddings", "embeddings"),
        ("block-0", "block 0"),
        ("block-1", "block 1"),
        ("block-2", "block 2"),
        ("block-3", "block 3"),
        ("all", "all"),
    ]
    assert [p.start_epoch for p in planned] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3])


def lisa(epochs: float = 100.0, seed: int = 0, **settings: object) -> tuple[Phase, ...]:
    return phases(unfreezing("lisa", **settings), 6, epochs, seed)


def test_lisa_draws_blocks_anew_every_interval() -> None:
    planned = lisa(2.0, depth=2, interval=0.5)
    assert {p.start_epoch for p in planned} <= {0.0, 0.5, 1.0, 1.5}
    assert {p.name: p.start_epoch for p in planned}.items() <= {
        f"lisa-{i + 1}": i * 0.5 for i in range(4)
    }.items()
    assert all(p.head and p.embeddings and len(p.blocks) == 2 for p in planned)
    (one,) = lisa(0.5, interval=0.5)
    assert one.name == "lisa-1"


def test_lisa_draws_from_the_seed_alone() -> None:
    assert lisa(seed=1) != lisa(seed=2)
    assert lisa(2.0, seed=1) == lisa(100.0, seed=1)[: len(lisa(2.0, seed=1))]
    # The same on every machine and Python: a trial that moves goes on with these.
    assert [p.blocks for p in lisa(1.0, seed=1, depth=2)] == [(0, 4), (0, 2), (1, 3), (1, 5)]


def test_lisa_draws_every_block_alike() -> None:
    drawn = [p.blocks for p in lisa(1000.0, depth=2)]
    assert all(a != b for a, b in pairwise(drawn))  # a draw that repeats the one before is no phase
    counts = [sum(block in blocks for blocks in drawn) for block in range(6)]
    assert sum(counts) == 2 * len(drawn)
    assert all(abs(count / len(drawn) - 1 / 3) < 0.05 for count in counts), counts


def test_lisa_at_full_depth_is_one_phase() -> None:
    (phase,) = lisa(depth=6)
    assert describe(phase, 6) == "all"


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


@pytest.mark.parametrize("schedule", ["top", "gradual", "bottom-up", "lisa"])
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
        (unfreezing("bottom-up", depth=2, points=[0.6, 0.5]), r"unfreezing.points: .* must ascend"),
        (
            unfreezing("lisa", interval=1e-6),
            r"unfreezing.interval: 1e-06 makes more than 10000 draws in 2 epochs; use at least 0.0002",
        ),
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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_trial_trains_the_phases_of_its_seed(
    schedule: str, make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    from training.loop import train

    listed = {"phases": [PhaseConfig(start=0, thaw=["head", 1])]} if schedule == "phases" else {}
    settings = unfreezing(schedule, interval=0.5, **listed)
    config = make_trial(epochs=3.0, seed=8, unfreezing=settings)
    told = Recorder()
    verdict = train(config, workspace=workspace, reporter=told, directory=tmp_path)
    assert verdict is Verdict.CONTINUE  # and every phase has proved what moved
    planned = phases(settings, 3, 3.0, 8)
    expected = [(p.name, pytest.approx(p.start_epoch), describe(p, 3)) for p in planned]
    assert [(p.name, p.start_epoch, p.thawed) for p in told.courses[0].phases] == expected
    assert schedule != "lisa" or planned != phases(settings, 3, 3.0, 0)


def test_import_is_light() -> None:
    heavy = ["torch", "transformers", "numpy"]
    code = f"import sys, training.schedules; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
