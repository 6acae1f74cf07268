"""When two trials are the same one, and what there is to try besides the known ones. Pure functions.

Two trials are the same when they train alike: settings that mean nothing beside the others (the depth of a
schedule that has none, the momentum of an optimizer without) do not tell them apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from search.records import TrialRecord, TrialState
from search.space import (
    Categorical,
    Constant,
    Distribution,
    IntUniform,
    SearchSpace,
    Uniform,
    active,
    canonical,
    multiple,
)
from training.config import TrainingConfig

# Setting -> the setting that decides whether it means anything, and the values with which it does.
# Where another condition counts too, that setting has an entry of its own.
_MATTERS: Mapping[str, tuple[str, Collection[Any]]] = {
    "unfreezing.depth": ("unfreezing.schedule", ("top", "gradual", "bottom-up", "lisa")),
    "unfreezing.points": ("unfreezing.schedule", ("gradual", "bottom-up")),
    "unfreezing.interval": ("unfreezing.schedule", ("lisa",)),
    "unfreezing.phases": ("unfreezing.schedule", ("phases",)),
    "momentum": ("optimizer", ("sgd",)),
    "adam_beta1": ("optimizer", ("adamw",)),
    "adam_beta2": ("optimizer", ("adamw",)),
    "adam_epsilon": ("optimizer", ("adamw",)),
    "lr_power": ("lr_schedule", ("polynomial",)),
    "warmup_ratio": ("warmup_steps", (None,)),
}
# More points than this of a discrete space are not listed.
_LISTED = 10_000


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes trials of a sweep the same: its space, and the settings that all its trials share."""

    space: SearchSpace
    training: TrainingConfig

    def __call__(self, values: Mapping[str, Any]) -> str:
        """16 hex digits, equal for values by path that train alike."""
        settings = canonical(self.space, values)
        for path in list(settings):
            if path in _MATTERS and not self._matters(path, settings):
                del settings[path]
        return plain_identity(settings)

    def _matters(self, path: str, settings: Mapping[str, Any]) -> bool:
        deciding, with_these = _MATTERS[path]
        value = settings[deciding] if deciding in settings else setting(self.training, deciding)
        return value in with_these


def plain_identity(values: Mapping[str, Any]) -> str:
    """16 hex digits, equal for equal values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def setting(training: TrainingConfig, path: str) -> Any:
    """The value of a dotted path; None where `training` has no such setting."""
    found: Any = training
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def repeated(trials: Iterable[TrialRecord], known: Mapping[int, str], identity: str) -> TrialRecord | None:
    """The trial that is the one with `identity`, if its result is known or will be.

    A trial that failed has no result, and is no reason not to try again.

    Args:
        known: the identities of `trials` by number.
    """
    same = (t for t in trials if t.state is not TrialState.FAILED and known[t.number] == identity)
    return next(same, None)


def untried(space: SearchSpace, identity: Identity, known: Collection[str]) -> list[dict[str, Any]] | None:
    """The points of a discrete space whose identity is not `known`, one for each; None where the space
    is continuous or too large to be listed."""
    found: dict[str, dict[str, Any]] = {}
    for count, values in enumerate(_points(space)):
        if values is None or count >= _LISTED:
            return None
        found.setdefault(identity(values), values)
    return [values for name, values in found.items() if name not in known]


def _points(space: SearchSpace) -> Iterator[dict[str, Any] | None]:
    """Values by path, the active ones alone; None at once where a parameter is continuous."""
    listed = [_values(parameter.distribution) for parameter in space.parameters]
    if any(values is None for values in listed):
        yield None
        return
    yield from _extended(space, listed, 0, {})


def _extended(
    space: SearchSpace, listed: list[list[Any] | None], at: int, values: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if at == len(space.parameters):
        yield dict(values)
        return
    path = space.parameters[at].path
    for value in listed[at] or ():
        extended = {**values, path: value}
        if path not in active(space, extended):
            yield from _extended(space, listed, at + 1, values)
            return
        yield from _extended(space, listed, at + 1, extended)


def _values(distribution: Distribution) -> list[Any] | None:
    match distribution:
        case Constant():
            return [distribution.value]
        case Categorical():
            return list(distribution.choices)
        case IntUniform(low=low, high=high, step=step) if (high - low) // step < _LISTED:
            return list(dict.fromkeys(distribution.decode(v) for v in range(low, high + step, step)))
        case Uniform(low=low, high=high, step=float() | int() as step) if (high - low) / step < _LISTED:
            first, last = round(low / step), round(high / step)
            return list(dict.fromkeys(distribution.decode(multiple(n, step)) for n in range(first, last + 1)))
        case _:
            return None
