"""A schedule as a picture for the terminal: layers from top to bottom, time from left to right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from training.schedules.phase import Phase, describe

_THAWED, _FROZEN = "█", "·"
_MARGIN = len("embeddings") + 2
_MIN_COLUMNS = 20
# A rule with a tick where a phase starts and where training ends.
_RULE, _TICK, _FIRST, _LAST = "─", "┴", "└", "┘"


def picture(phases: Sequence[Phase], num_blocks: int, epochs: float, width: int) -> str:
    """What is thawed when, without colours; `width` characters wide, but no less than 32.

    A row for the head, each block from the top down and the embeddings; below them an axis
    with the starts of the phases in epochs, as many of them as there is room for; then all
    phases, one a line. What a column shows is what trains in its middle, so a phase
    shorter than a column may be seen in the list alone.
    """
    columns = max(width - _MARGIN, _MIN_COLUMNS)
    shown = [_at(phases, (column + 0.5) * epochs / columns) for column in range(columns)]
    rule, labels = _axis([phase.start_epoch for phase in phases], epochs, columns)
    lines = [
        _row("head", _cells(phase.head for phase in shown)),
        *(
            _row(f"block {block}", _cells(block in phase.blocks for phase in shown))
            for block in reversed(range(num_blocks))
        ),
        _row("embeddings", _cells(phase.embeddings for phase in shown)),
        _row("", rule),
        _row("epoch", labels),
        "",
        *_list(phases, num_blocks),
    ]
    return "\n".join(lines)


def _row(name: str, cells: str) -> str:
    return f"{name:>{_MARGIN - 2}}  {cells}"


def _cells(thawed: Iterable[bool]) -> str:
    return "".join(_THAWED if cell else _FROZEN for cell in thawed)


def _at(phases: Sequence[Phase], epoch: float) -> Phase:
    """The phase that `epoch` lies in."""
    return [phase for phase in phases if phase.start_epoch <= epoch][-1]


def _axis(starts: Sequence[float], epochs: float, columns: int) -> tuple[str, str]:
    """A rule with ticks, and their labels. The end is always labelled, starts where they fit.

    A start's tick is under the first column of its phase, the end's under the last column.
    """
    ticks = {_column(start, epochs, columns): f"{start:.4g}" for start in reversed(starts)}
    rule = [_TICK if column in ticks else _RULE for column in range(columns)]
    rule[0], rule[-1] = _FIRST, _LAST
    end = f"{epochs:.4g}"
    labels = " " * (columns - len(end)) + end
    for column, label in sorted(ticks.items()):
        taken = slice(max(column - 1, 0), column + len(label) + 1)
        if column + len(label) < columns and labels[taken].isspace():
            labels = labels[:column] + label + labels[column + len(label) :]
    return "".join(rule), labels


def _column(epoch: float, epochs: float, columns: int) -> int:
    """The first column whose middle is not before `epoch`; the last for what comes after all middles."""
    return next((c for c in range(columns) if (c + 0.5) * epochs / columns >= epoch), columns - 1)


def _list(phases: Sequence[Phase], num_blocks: int) -> list[str]:
    rows = [("epoch", "phase", "thawed")]
    rows += [(f"{phase.start_epoch:.4g}", phase.name, describe(phase, num_blocks)) for phase in phases]
    start, name = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{row[0]:>{start}}  {row[1]:<{name}}  {row[2]}" for row in rows]
