from itertools import pairwise

import pytest

from training.config import UnfreezingConfig
from training.schedules import SCHEDULES, Phase, phases
from training.schedules.picture import picture

HEAD = Phase(name="head", start_epoch=0.0, blocks=())
ALL = Phase(name="all", start_epoch=1.0, blocks=(0, 1), embeddings=True)


def test_a_picture() -> None:
    middle = Phase(name="middle", start_epoch=0.5, blocks=(1,), head=False)
    assert picture((HEAD, middle, ALL), 2, 2.0, 32).splitlines() == [
        "      head  █████·····██████████",
        "   block 1  ·····███████████████",
        "   block 0  ··········██████████",
        "embeddings  ··········██████████",
        "            └────┴────┴────────┘",
        "     epoch  0    0.5  1        2",
        "",
        "epoch  phase   thawed",
        "    0  head    head",
        "  0.5  middle  block 1",
        "    1  all     all",
    ]


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "phases"])
@pytest.mark.parametrize("epochs", [0.3, 3.0, 1000.0])
@pytest.mark.parametrize("width", [1, 60, 133])
def test_every_schedule_fits_and_is_all_there(schedule: str, epochs: float, width: int) -> None:
    planned = phases(UnfreezingConfig(schedule=schedule, depth=3), 6, epochs)  # type: ignore[arg-type]
    lines = picture(planned, 6, epochs, width).splitlines()
    drawn, listed = lines[:10], lines[12:]
    assert {len(line) for line in drawn} == {max(width, 32)}
    assert [line[:10].strip() for line in drawn[:8]] == [
        "head", *(f"block {i}" for i in range(5, -1, -1)), "embeddings"
    ]  # fmt: skip
    assert all(set(line[12:]) <= {"█", "·"} for line in drawn[:8])
    assert drawn[-1].endswith(f" {epochs:g}")
    assert [line.split()[1] for line in listed] == [phase.name for phase in planned]


def test_ticks_lie_where_rows_change() -> None:
    planned = phases(UnfreezingConfig(schedule="chain-thaw"), 6, 3.0)
    *rows, rule, _ = (line[12:] for line in picture(planned, 6, 3.0, 80).splitlines()[:10])
    changes = {i for row in rows for i, (a, b) in enumerate(pairwise(row), start=1) if a != b}
    assert changes == {i for i, mark in enumerate(rule) if mark == "┴"}
    assert len(changes) == len(planned) - 1


def test_labels_that_would_touch_are_left_out() -> None:
    near = Phase(name="near", start_epoch=0.1, blocks=(0,))
    late = Phase(name="late", start_epoch=1.95, blocks=(1,))
    rule, labels = picture((HEAD, near, ALL, late), 2, 2.0, 32).splitlines()[4:6]
    assert rule == "            └┴────────┴────────┘"
    assert labels == "     epoch  0         1        2"
