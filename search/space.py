"""The search space: what may be tried. Plain values and pure functions; Optuna is asked, not imported.

An Optuna trial stores one number or word per parameter, under `Parameter.key`. Mostly it is the value
itself. Where Optuna has no such distribution (a normal one, weighted choices, rounded logarithmic ones)
it is the number that the value is computed from, and the key has a suffix that says so. `decode` goes
from what an Optuna trial stores to values, `encode` back.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import optuna

_PLAIN = (type(None), bool, int, float, str)
_EDGE = 1e-9  # of a quantile, so that a normal distribution stays finite


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One value, not searched."""

    suffix: ClassVar[str] = ""
    value: Any

    def takes(self, value: object) -> bool:
        """Whether `value` can come up."""
        return value == self.value

    def describe(self) -> str:
        """The values that can come up, in words."""
        return json.dumps(self.value)


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One of `choices`, each equally likely or with its probability."""

    choices: tuple[Any, ...]
    probabilities: tuple[float, ...] | None = None

    @property
    def suffix(self) -> str:
        """Weighted choices are stored as a quantile."""
        return ".quantile" if self.probabilities else ""

    def takes(self, value: object) -> bool:
        """Whether `value` can come up."""
        return value in self.choices

    def describe(self) -> str:
        """The values that can come up, in words."""
        return ", ".join(c if isinstance(c, str) else json.dumps(c) for c in self.choices)

    def stored_choices(self) -> tuple[Any, ...]:
        """The choices as Optuna can store them: lists and mappings as JSON."""
        if all(isinstance(c, _PLAIN) for c in self.choices):
            return self.choices
        return tuple(json.dumps(c, sort_keys=True) for c in self.choices)

    def edges(self) -> list[float]:
        """Where on (0, 1) each weighted choice ends."""
        return list(itertools.accumulate(self.probabilities or ()))

    def decode(self, stored: Any) -> Any:
        """The choice that stands for what Optuna stores."""
        if self.probabilities:
            return self.choices[min(bisect.bisect_right(self.edges(), stored), len(self.choices) - 1)]
        return self.choices[self.stored_choices().index(stored)]

    def encode(self, value: Any) -> Any:
        """What Optuna stores for a choice."""
        at = self.choices.index(value)
        if self.probabilities:
            return self.edges()[at] - self.probabilities[at] / 2
        return self.stored_choices()[at]


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """A number in [low, high], or a multiple of `step` there (`low` and `high` are multiples too)."""

    low: float
    high: float
    log: bool = False
    """Uniform in the logarithm."""
    step: float | None = None

    @property
    def suffix(self) -> str:
        """Rounded logarithmic numbers are stored before they are rounded."""
        return ".unrounded" if self.log and self.step else ""

    def takes(self, value: object) -> bool:
        """Whether `value` comes up with a probability above zero: never without a step."""
        if self.step is None or isinstance(value, bool) or not isinstance(value, int | float):
            return self.low == self.high == value
        return self.low <= value <= self.high and math.isclose(value, self.decode(value))

    def describe(self) -> str:
        """The values that can come up, in words."""
        return f"{self.low} to {self.high}" + (f" in steps of {self.step}" if self.step else "")

    def decode(self, stored: float) -> float:
        """The number, rounded to the step and kept in the range."""
        value = multiple(round(stored / self.step), self.step) if self.step else float(stored)
        return min(max(value, self.low), self.high)

    def encode(self, value: float) -> float:
        """What Optuna stores for a number."""
        return float(value)


@dataclass(frozen=True, kw_only=True)
class IntUniform:
    """A whole number in [low, high], a multiple of `step` above `low`."""

    low: int
    high: int
    step: int = 1
    log: bool = False
    """Uniform in the logarithm; `low` and `high` are multiples of `step` then."""

    @property
    def suffix(self) -> str:
        """Rounded logarithmic numbers are stored before they are rounded."""
        return ".unrounded" if self.log and self.step > 1 else ""

    def takes(self, value: object) -> bool:
        """Whether `value` can come up."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and value == self.decode(value)

    def describe(self) -> str:
        """The values that can come up, in words."""
        return f"{self.low} to {self.high}" + (f" in steps of {self.step}" if self.step > 1 else "")

    def decode(self, stored: float) -> int:
        """The whole number, rounded to the step and kept in the range."""
        return min(max(self.low + round((stored - self.low) / self.step) * self.step, self.low), self.high)

    def encode(self, value: float) -> float:
        """What Optuna stores for a whole number."""
        return float(value) if self.suffix else int(value)


@dataclass(frozen=True, kw_only=True)
class Normal:
    """A normally distributed number, cut off at the bounds of its setting."""

    suffix: ClassVar[str] = ".quantile"
    mu: float
    sigma: float
    low: float = -math.inf
    high: float = math.inf

    def takes(self, value: object) -> bool:
        """No single number has a probability above zero."""
        return False

    def describe(self) -> str:
        """The values that can come up, in words."""
        return f"normal around {self.mu}"

    def mass(self) -> tuple[float, float]:
        """The quantiles of the bounds."""
        normal = NormalDist(self.mu, self.sigma)
        return normal.cdf(self.low), normal.cdf(self.high)

    def decode(self, stored: float) -> float:
        """The number at a quantile of the distribution that was cut off."""
        below, above = self.mass()
        quantile = min(max(below + stored * (above - below), _EDGE), 1 - _EDGE)
        return min(max(NormalDist(self.mu, self.sigma).inv_cdf(quantile), self.low), self.high)

    def encode(self, value: float) -> float:
        """The quantile of a number."""
        below, above = self.mass()
        quantile = (NormalDist(self.mu, self.sigma).cdf(value) - below) / (above - below)
        return min(max(quantile, 0.0), 1.0)


Distribution = Constant | Categorical | Uniform | IntUniform | Normal


def contains(distribution: Distribution, value: object) -> bool:
    """Whether `value` lies where the distribution draws from, if only with a probability of zero."""
    if isinstance(distribution, Normal) or (isinstance(distribution, Uniform) and distribution.step is None):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return distribution.low <= value <= distribution.high
    return distribution.takes(value)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Another parameter has one of these values."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One setting of a trial, what it may be, and when it means anything."""

    path: str
    """Dotted path into the trial's configuration, such as `unfreezing.depth` or `task.max_length`."""
    distribution: Distribution
    when: tuple[Condition, ...] = ()
    """It is active where all of these hold and their parameters are active themselves."""

    @property
    def key(self) -> str:
        """The name under which an Optuna trial stores it."""
        return self.path + self.distribution.suffix


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """All parameters of a sweep, each after those that its conditions are about."""

    parameters: tuple[Parameter, ...]

    def __getitem__(self, path: str) -> Parameter:
        return next(p for p in self.parameters if p.path == path)


def multiple(count: int, step: float) -> float:
    """`count * step` without the dust of binary fractions: 3 * 0.1 is 0.3."""
    return float(Decimal(repr(step)) * count)


def _holds(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    return all(c.path in values and values[c.path] in c.values for c in parameter.when)


def _live(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    live: dict[str, Any] = {}
    for parameter in space.parameters:
        if not _holds(parameter, live):
            continue
        if parameter.path in values:
            live[parameter.path] = values[parameter.path]
        elif isinstance(parameter.distribution, Constant):
            live[parameter.path] = parameter.distribution.value
    return live


def active(space: SearchSpace, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths that mean something beside the others' values, in the order of the space.

    Constants need not be among `values`.
    """
    return tuple(_live(space, values))


def canonical(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    """The active values alone, sorted by path, with the numbers that the space would give."""
    found = {}
    for path, value in sorted(_live(space, values).items()):
        distribution = space[path].distribution
        if isinstance(distribution, Uniform | IntUniform):
            value = distribution.decode(value)
        found[path] = value
    return found


def digest(space: SearchSpace, values: Mapping[str, Any]) -> str:
    """16 hex digits, equal for equal trials: of `canonical(space, values)`."""
    text = json.dumps(canonical(space, values), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def suggest(space: SearchSpace, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
    """Asks an Optuna trial for the active parameters, in order; returns values by path, constants too."""
    values: dict[str, Any] = {}
    for parameter in space.parameters:
        if _holds(parameter, values):
            values[parameter.path] = _ask(trial, parameter.key, parameter.distribution)
    return values


def _ask(trial: optuna.trial.BaseTrial, key: str, wanted: Distribution) -> Any:
    match wanted:
        case Constant():
            return wanted.value
        case Categorical(probabilities=None):
            return wanted.decode(trial.suggest_categorical(key, wanted.stored_choices()))
        case IntUniform() if not wanted.suffix:
            return trial.suggest_int(key, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
        case Categorical() | Normal():
            return wanted.decode(trial.suggest_float(key, 0.0, 1.0))
        case Uniform(log=False):
            return wanted.decode(trial.suggest_float(key, wanted.low, wanted.high, step=wanted.step))
        case _:
            return wanted.decode(trial.suggest_float(key, wanted.low, wanted.high, log=wanted.log))


def decode(space: SearchSpace, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path from what an Optuna trial stores (`trial.params`): what `suggest` returned for it."""
    values: dict[str, Any] = {}
    for parameter in space.parameters:
        if not _holds(parameter, values):
            continue
        if isinstance(parameter.distribution, Constant):
            values[parameter.path] = parameter.distribution.value
        elif parameter.key in stored:
            values[parameter.path] = parameter.distribution.decode(stored[parameter.key])
    return values


def encode(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    """What an Optuna trial stores for values, as `study.enqueue_trial` takes it; the active ones alone."""
    return {
        parameter.key: parameter.distribution.encode(values[parameter.path])
        for parameter in (space[path] for path in active(space, values))
        if not isinstance(parameter.distribution, Constant)
    }


def distributions(space: SearchSpace) -> dict[str, optuna.distributions.BaseDistribution]:
    """Optuna's distributions by `Parameter.key`, as `suggest` asks for them; for `optuna.create_trial`."""
    import optuna

    trial = _Recorder()
    for parameter in space.parameters:
        _ask(trial, parameter.key, parameter.distribution)  # type: ignore[arg-type]
    of = optuna.distributions
    made: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, (kind, args, options) in trial.asked.items():
        make: Any = {"float": of.FloatDistribution, "int": of.IntDistribution}.get(
            kind, of.CategoricalDistribution
        )
        made[key] = make(*args, **options)
    return made


class _Recorder:
    """Stands in for an Optuna trial, to note what it would be asked."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {}

    def suggest_float(self, key: str, low: float, high: float, **options: Any) -> float:
        self.asked[key] = ("float", (low, high), options)
        return low

    def suggest_int(self, key: str, low: int, high: int, **options: Any) -> int:
        self.asked[key] = ("int", (low, high), options)
        return low

    def suggest_categorical(self, key: str, choices: tuple[Any, ...]) -> Any:
        self.asked[key] = ("categorical", (choices,), {})
        return choices[0]
