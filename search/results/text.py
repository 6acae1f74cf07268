"""How names, numbers, times and tables are written for humans."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

UNKNOWN = "-"
_ALIASES = {"learning_rate": "lr", "batch_size": "batch"}


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each dotted path with the shortest ending that no other path shares; customary abbreviations.

    `{"unfreezing.depth": "depth", "learning_rate": "lr"}`
    """
    parts = {path: path.split(".") for path in paths}
    endings: dict[str, int] = {}
    for words in parts.values():
        for start in range(len(words)):
            ending = ".".join(words[start:])
            endings[ending] = endings.get(ending, 0) + 1

    def shortest(words: list[str]) -> str:
        tails = (".".join(words[start:]) for start in range(len(words) - 1, 0, -1))
        return next((tail for tail in tails if endings[tail] == 1), ".".join(words))

    short = {path: shortest(words) for path, words in parts.items()}
    return {
        path: name if (alias := _ALIASES.get(name, name)) in endings else alias
        for path, name in short.items()
    }


def number(value: Any) -> str:
    """A parameter's value: floats to four significant digits, all else as it is; `-` when missing."""
    if value is None:
        return UNKNOWN
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure(value: float | None) -> str:
    """A metric's value to four digits after the point (0.8500), so that a column lines up."""
    if value is None:
        return UNKNOWN
    if math.isfinite(value) and value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.3e}"
    return f"{value:.4f}"


def duration(seconds: float | None) -> str:
    """`8s`, `1m05s`, `2h07m`, `3d04h`; `-` when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a `grid`."""

    header: str
    cells: Sequence[Text | str]
    justify: Literal["left", "right"] = "right"
    drop: int = 0
    """Where the width does not do, the column with the highest goes first; 0 stays."""
    elastic: bool = False
    """Cells are cut to the width that the other columns leave."""

    @property
    def width(self) -> int:
        """Characters that it needs at least."""
        widest = max((len(cell) for cell in self.cells), default=0)
        return max(len(self.header), min(widest, 12) if self.elastic else widest)


def grid(columns: Sequence[Column], *, width: int | None = None, title: str | None = None) -> Table:
    """A table of `columns` without lines, in at most `width` characters as far as columns may be dropped."""
    kept = list(columns)
    while width is not None and sum(c.width + 2 for c in kept) - 2 > width:
        last = max(reversed(kept), key=lambda c: c.drop)
        if last.drop == 0:
            break
        kept.remove(last)
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column in kept:
        # Rich narrows the columns that may wrap before all others.
        table.add_column(column.header, justify=column.justify, no_wrap=not column.elastic)
    for row in zip(*(c.cells for c in kept), strict=True):
        cells = [cell if isinstance(cell, Text) else Text(cell) for cell in row]
        for cell in cells:
            cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(*cells)
    return table
