from __future__ import annotations

from pathlib import Path

import pytest

from training.config import PrefixStoreConfig
from training.prefix.budget import Held, Room, _available_memory, budget, place, victims


def held(
    key: str, *, size: int = 100, seconds: float = 1.0, idle_s: float = 0.0, in_use: bool = False
) -> Held:
    return Held(key=key, size=size, seconds=seconds, idle_s=idle_s, in_use=in_use)


def test_the_least_valuable_goes_first() -> None:
    entries = [held("dear", seconds=4.0), held("cheap", seconds=1.0), held("fair", seconds=2.0)]
    assert victims(entries, excess=0, value=1.0) == []
    assert victims(entries, excess=50, value=1.0) == ["cheap"]
    assert victims(entries, excess=150, value=1.0) == ["cheap", "fair"]
    # Nobody gives way to what is worth less, or while he is read.
    assert victims(entries, excess=250, value=0.03) is None
    assert victims([held("cheap", in_use=True), held("fair", seconds=2.0)], excess=50, value=1.0) == ["fair"]
    assert victims([held("only", in_use=True)], excess=50, value=1.0) is None


def test_value_is_what_a_byte_saves_and_fades() -> None:
    assert held("", size=200).value == held("", size=100).value / 2
    assert held("", idle_s=3600.0).value == held("").value / 2


def room(shelf: str, budget: int, used: int = 0, *entries: Held) -> Room:
    return Room(shelf=shelf, budget=budget, used=used, held=entries)  # type: ignore[arg-type]


def test_memory_before_disk_before_recomputing() -> None:
    rooms = [room("memory", 1000), room("disk", 5000)]

    def shelf(size: int, seconds: float, read: float | None = 1e-9) -> str | None:
        found = place(rooms, size=size, seconds=seconds, read_seconds_per_byte=read)
        return found.shelf if found else None

    assert shelf(1000, 1e-9) == "memory"  # whatever it takes to compute
    assert shelf(1001, 1e-3) == "disk"
    assert shelf(1001, 1e-7) is None  # it is computed faster than it is read
    assert shelf(1001, 1e-3, None) is None  # nobody knows how fast the disk is
    assert shelf(5001, 1.0) is None


def test_what_has_to_go() -> None:
    full = room("memory", 1000, 950, held("old", size=500, seconds=0.1), held("new", size=450, seconds=9.0))
    found = place([full], size=300, seconds=1.0, read_seconds_per_byte=None)
    assert found is not None
    assert found.evicted == ("old",)
    assert place([full], size=900, seconds=1.0, read_seconds_per_byte=None) is None


def test_budget(tmp_path: Path) -> None:
    assert budget(PrefixStoreConfig(memory=0.5), "memory", tmp_path, 0) == 500_000_000
    assert budget(PrefixStoreConfig(disk=2), "disk", tmp_path, 10) == 2_000_000_000
    for shelf in ("memory", "disk"):
        auto = budget(PrefixStoreConfig(), shelf, tmp_path / "not there yet", 0)  # type: ignore[arg-type]
        assert auto > 0
        # What the store takes itself does not make its budget smaller.
        more = budget(PrefixStoreConfig(), shelf, tmp_path, 10**9)  # type: ignore[arg-type]
        assert more - auto == pytest.approx(10**9 * (0.25 if shelf == "memory" else 0.1), rel=0.5)


def test_what_a_container_can_still_give(tmp_path: Path) -> None:
    """What it has read of files is not lost to it."""
    machine = _available_memory(tmp_path)  # where there are no such limits
    for name, text in {"max": "9000000\n", "current": "8000000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    (tmp_path / "memory.stat").write_text("anon 3000000\ninactive_file 4000000\nactive_file 1000000\n")
    assert _available_memory(tmp_path) == 5_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert _available_memory(tmp_path) == pytest.approx(machine, rel=0.2)
