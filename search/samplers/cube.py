"""A define-by-run space as a cube: found by asking, drawn from whole, its inactive parameters known.

Optuna's own samplers see conditional parameters only where all trials have them. Here every
parameter that ever came up is an axis, and a point of the cube is walked through the space to
see which of its axes are active there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Suggest = Callable[[Any], Mapping[str, Any]]
"""Draws the active parameters of a trial, define-by-run."""

ToValue = Callable[[float], Any]
ToUnit = Callable[[Any], float]

_PROBES = 48


class Draft:
    """Stands in for an Optuna trial; `choose` says what each parameter becomes."""

    def __init__(self, choose: Callable[[str, Callable[[], BaseDistribution]], Any]) -> None:
        self._choose = choose
        self.params: dict[str, Any] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: Any = None, log: bool = False
    ) -> Any:
        """As Optuna's."""
        value = self._choose(name, lambda: FloatDistribution(low, high, log=log, step=step))
        self.params[name] = value
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        """As Optuna's."""
        value = self._choose(name, lambda: IntDistribution(low, high, log=log, step=step))
        self.params[name] = value
        return value

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """As Optuna's."""
        value = self._choose(name, lambda: CategoricalDistribution(choices))
        self.params[name] = value
        return value


class Cube:
    """The axes of a space, one a parameter, each from 0 to 1. Points are float64 [n, d]."""

    def __init__(self, suggest: Suggest) -> None:
        """Finds the axes by some draws; one too rare to come up is none, and is left to chance."""
        self._suggest = suggest
        found: dict[str, BaseDistribution] = {}
        self._to_value: dict[str, ToValue] = {}
        self._to_unit: dict[str, ToUnit] = {}
        rng = np.random.default_rng(0)  # finds axes, draws no trial

        def choose(name: str, distribution: Callable[[], BaseDistribution]) -> Any:
            if name not in found:
                found[name] = distribution()
                self._to_value[name], self._to_unit[name] = axis(found[name])
            return self._to_value[name](rng.random())

        drawn = set()
        for _ in range(_PROBES):
            draft = Draft(choose)
            suggest(draft)
            drawn.add(frozenset(draft.params))
        self.distributions = found
        self.names = tuple(found)
        self.conditional = len(drawn) > 1
        """Whether some parameters are at times inactive."""
        self._axis = {name: axis for axis, name in enumerate(self.names)}

    @property
    def size(self) -> int:
        """Number of axes."""
        return len(self.names)

    def point(self, params: Mapping[str, Any]) -> np.ndarray:
        """A trial's parameters, as Optuna stores them, as a point [d]; NaN where inactive or off the axis."""
        return np.array(
            [to_unit(params[name]) if name in params else math.nan for name, to_unit in self._to_unit.items()]
        )

    def params(self, point: np.ndarray) -> dict[str, Any]:
        """The active parameters of a point, as Optuna stores them."""

        places = dict(zip(self.names, point.tolist(), strict=True))

        def choose(name: str, distribution: Callable[[], BaseDistribution]) -> Any:
            if name not in places:  # too rare to be an axis
                return axis(distribution())[0](0.5)
            return self._to_value[name](places[name])

        draft = Draft(choose)
        self._suggest(draft)
        return {name: value for name, value in draft.params.items() if name in places}

    def masked(self, points: np.ndarray) -> np.ndarray:
        """`points` [n, d] with NaN on the axes that are inactive there."""
        if not self.conditional:
            return points
        masked = np.full_like(points, math.nan)
        for row, point in enumerate(points):
            active = [self._axis[name] for name in self.params(point)]
            masked[row, active] = point[active]
        return masked

    def features(self, points: np.ndarray) -> np.ndarray:
        """Masked points [n, d] for a model [n, f]: inactive axes at the middle, one column a choice."""
        filled = np.where(np.isnan(points), 0.5, points)
        columns: list[np.ndarray] = []
        for axis, distribution in enumerate(self.distributions.values()):
            if isinstance(distribution, CategoricalDistribution):
                count = len(distribution.choices)
                chosen = np.minimum((filled[:, axis] * count).astype(int), count - 1)
                hot = np.eye(count)[chosen]
                hot[np.isnan(points[:, axis])] = 0.0
                columns.extend(hot.T)
            else:
                columns.append(filled[:, axis])
        return np.stack(columns, axis=1) if columns else np.zeros((len(points), 0))


def axis(distribution: BaseDistribution) -> tuple[ToValue, ToUnit]:
    """From a place on [0, 1] to what Optuna stores, and back to the middle of the places that give it.

    What is foreign to the distribution is at NaN. Made once for each axis: a suggestion asks thousands
    of times.
    """
    match distribution:
        case CategoricalDistribution(choices=choices):
            return _stepped(len(choices), choices.__getitem__, _position(choices))
        case FloatDistribution(low=low, high=high, step=float() as step):
            count = round((high - low) / step) + 1
            return _stepped(count, lambda i: min(low + i * step, high), lambda v: (v - low) / step)
        case FloatDistribution(low=low, high=high, log=log):
            return _continuous(low, high, log)
        case IntDistribution(low=low, high=high, log=True):
            to_value, to_unit = _continuous(low - 0.5, high + 0.5, True)
            return lambda unit: min(max(round(to_value(unit)), low), high), to_unit
        case IntDistribution(low=low, high=high, step=step):
            count = (high - low) // step + 1
            return _stepped(count, lambda i: low + i * step, lambda v: (v - low) // step)
        case _:
            raise ValueError(f"no axis for {distribution}")


def _continuous(low: float, high: float, log: bool) -> tuple[ToValue, ToUnit]:
    below, above = (math.log(low), math.log(high)) if log else (low, high)
    span = above - below

    def to_value(unit: float) -> float:
        place = below + min(max(unit, 0.0), 1.0) * span
        return min(max(math.exp(place) if log else place, low), high)

    def to_unit(value: float) -> float:
        if span <= 0:
            return 0.5
        if log and value <= 0:
            return 0.0
        return min(max(((math.log(value) if log else value) - below) / span, 0.0), 1.0)

    return to_value, to_unit


def _stepped(
    count: int, value_at: Callable[[int], Any], place_of: Callable[[Any], float]
) -> tuple[ToValue, ToUnit]:
    def to_value(unit: float) -> Any:
        return value_at(min(int(max(unit, 0.0) * count), count - 1))

    def to_unit(value: Any) -> float:
        return (place_of(value) + 0.5) / count

    return to_value, to_unit


def _position(choices: Sequence[Any]) -> Callable[[Any], float]:
    places = {choice: float(place) for place, choice in enumerate(choices)}
    return lambda value: places.get(value, math.nan)
