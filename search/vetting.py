"""What a ledger says, looked at as if a stranger had written it: it may come from anywhere, as any file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from search.budget import Sitting
from search.records import PhaseRecord, Result, Ruling, TrialRecord

_MAX_EPOCHS = 1e9
_MAX_TEXT = 10_000
_GOALS = ("maximize", "minimize")


class Altered(ValueError):
    """It cannot have been written by Thaw, or was altered."""


def study(made: Mapping[str, Any]) -> None:
    """Check what a study says of itself.

    Raises:
        Altered: if it cannot be right.
    """
    target = made.get("target")
    right = {
        "name": _word(made.get("name", "")),
        "metric": _word(made["metric"]),
        "goal": made["goal"] in _GOALS,
        "objectives": _listed(made.get("objectives", []), _objective),
        "seed": _whole(made["seed"], 2**32),
        "target": target is None or _whole(target, 2**31),
        "points": _listed(made.get("points", []), _params),
        "prior": _listed(made.get("prior", []), _prior),
    }
    if wrong := [name for name, fits in right.items() if not fits]:
        raise Altered(f"{', '.join(wrong)} cannot be right")


def sitting(found: Sitting) -> Sitting:
    """What a driver has used.

    Raises:
        Altered: if it cannot be right.
    """
    nodes = found.node_seconds
    right = isinstance(nodes, Mapping) and all(_word(k) and _number(v) for k, v in nodes.items())
    if not right or not _number(found.seconds):
        raise Altered("what a driver has used cannot be right")
    return found


def record(found: TrialRecord) -> TrialRecord:
    """A trial as the ledger has it, with texts that a terminal can show.

    Raises:
        Altered: if something in it cannot be right.
    """
    wrong = [
        name
        for name, right in (
            ("params", _params(found.params)),
            ("seed", _whole(found.seed, 2**31)),
            ("results", all(map(_result, found.results))),
            ("phases", all(map(_phase, found.phases))),
            ("rulings", all(map(_ruling, found.rulings))),
            ("note", found.note is None or isinstance(found.note, str)),
            ("error", found.error is None or isinstance(found.error, str)),
            ("same_as", found.same_as is None or _whole(found.same_as, 2**31)),
        )
        if not right
    ]
    if wrong:
        raise Altered(f"trial {found.number}: {', '.join(wrong)} cannot be right")
    phases = tuple(replace(p, name=shown(p.name), thawed=shown(p.thawed)) for p in found.phases)
    return replace(
        found,
        phases=phases,
        note=None if found.note is None else shown(found.note),
        error=None if found.error is None else shown(found.error),
    )


def shown(text: str) -> str:
    """`text` without what would steer a terminal, and not endless."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_MAX_TEXT])


def _word(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _listed(value: Any, right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(right, value))


def _objective(value: Any) -> bool:
    return _listed(value, _word) and len(value) == 2 and value[1] in _GOALS


def _prior(value: Any) -> bool:
    """Its values are read by `search.view.prior_trial`."""
    if not isinstance(value, Mapping) or not _params(value.get("params")):
        return False
    return _listed(value.get("results"), lambda r: isinstance(r, Mapping)) and _word(value.get("state"))


def _params(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) and key.isprintable() for key in value)


def _whole(value: Any, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _number(value: Any, end: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < end


def _result(result: Result) -> bool:
    where = result.checkpoint
    return (
        _number(result.epochs, _MAX_EPOCHS)
        and _number(result.seconds)
        and _number(result.gpu_seconds)
        and all(isinstance(name, str) and name.isprintable() for name in result.metrics)
        and (where is None or (isinstance(where, str) and where.isprintable() and len(where) < _MAX_TEXT))
    )


def _phase(phase: PhaseRecord) -> bool:
    texts = isinstance(phase.name, str) and isinstance(phase.thawed, str)
    return texts and _number(phase.start_epoch, _MAX_EPOCHS)


def _ruling(ruling: Ruling) -> bool:
    texts = isinstance(ruling.decision, str) and isinstance(ruling.reason, str)
    return texts and _number(ruling.epochs, _MAX_EPOCHS)
