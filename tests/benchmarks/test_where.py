"""Where time goes is booked on the innermost part."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.benchmarks.where import PARTS, Stopwatch, table


def test_a_second_counts_for_the_innermost_part() -> None:
    now = [0.0]

    def work() -> None:
        now[0] += 1
        parts.inner()
        now[0] += 1

    def inner() -> None:
        now[0] += 5

    parts = SimpleNamespace(work=work, inner=inner)
    watch = Stopwatch(lambda: now[0])
    watch.on("step", parts, "work")
    watch.on("batches", parts, "inner")
    parts.work()
    now[0] += 3
    watch.turn()
    assert watch.seconds == {"step": 2, "batches": 5, "the rest": 3}
    assert "50.0%" in table({"trial": dict(watch.seconds)})


def test_a_part_that_fails_is_over() -> None:
    def fails() -> None:
        raise ValueError("no")

    parts = SimpleNamespace(fails=fails)
    watch = Stopwatch(lambda: 0.0)
    watch.on("step", parts, "fails")
    with pytest.raises(ValueError, match="no"):
        parts.fails()
    assert watch._open == ["the rest"]


def test_every_part_is_where_the_bench_looks_for_it() -> None:
    assert [name for _, owner, name in PARTS if not callable(getattr(owner, name, None))] == []
