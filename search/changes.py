"""What may change in the file of a sweep that has begun: how much is run, not what."""

from __future__ import annotations

from search.loading import differences
from search.spec import SweepSpec

_FREE = (
    "search.budget",
    "resources.max_concurrent",
    "resources.max_gangs",
    "resources.priority",
    "resources.prices",
    "resources.prefix_store",
)
ALLOWED = f"more trials (search.trials), {', '.join(_FREE[:-1])} and {_FREE[-1]}"


def sorted_out(old: SweepSpec, new: SweepSpec) -> tuple[list[str], list[str]]:
    """What changed from one file to the other, one line each: what may, and what may not."""
    may: list[str] = []
    may_not: list[str] = []
    for line in differences(old, new):
        path = line.partition(": ")[0]
        more = path == "search.trials" and new.search.trials > old.search.trials
        free = any(path == name or path.startswith(f"{name}.") for name in _FREE)
        (may if more or free else may_not).append(line)
    return may, may_not
