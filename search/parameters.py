"""The `parameters` block of a sweep file -> the search space, and back.

The block has the shape of a W&B sweep's (docs.wandb.ai, "Sweep configuration options"), plus `when`.
As there, a missing `distribution` is inferred: `value` is constant, `values` categorical, `min` and `max`
int_uniform where both are integers, else uniform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from search.problems import describe, dotted, hint, key, kinds, members, show
from search.space import (
    Categorical,
    Condition,
    Constant,
    Distribution,
    IntUniform,
    Normal,
    Parameter,
    SearchSpace,
    Uniform,
    multiple,
)

# distribution: the keys it needs, the keys it also takes
KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "constant": (("value",), ()),
    "categorical": (("values",), ("probabilities",)),
    "uniform": (("min", "max"), ()),
    "int_uniform": (("min", "max"), ()),
    "log_uniform_values": (("min", "max"), ()),
    "q_uniform": (("min", "max"), ("q",)),
    "q_log_uniform_values": (("min", "max"), ("q",)),
    "normal": ((), ("mu", "sigma")),
}
_MAX_STEPS = 1_000_000_000
_CHECKED = 1000  # whole numbers of a range that are each tried on their setting

Block = Mapping[str, Mapping[str, Any] | None]
"""Dotted path -> the keys that were given for it, with the right types;
None where they are known to be wrong."""

_DUST = Decimal("1e-12")  # of binary fractions: an edge that is a multiple stays one


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One setting that can be searched."""

    path: str
    annotation: Any
    description: str
    check: Callable[[Any], tuple[Any, str | None]]
    """Raw value -> (plain value of the right type, None) or (anything, complaint)."""

    @property
    def fractional(self) -> bool:
        """Whether it takes numbers with a fraction."""
        return float in kinds(self.annotation)

    @property
    def numeric(self) -> bool:
        """Whether it takes numbers."""
        return self.fractional or int in kinds(self.annotation)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest number it takes."""
        low, high = -math.inf, math.inf
        for member in members(self.annotation):
            for bound in get_args(member)[1:] if float in kinds(member) else ():
                match bound:
                    case Gt(gt=float() | int() as at):
                        low = math.nextafter(at, math.inf)
                    case Ge(ge=float() | int() as at):
                        low = at
                    case Lt(lt=float() | int() as at):
                        high = math.nextafter(at, -math.inf)
                    case Le(le=float() | int() as at):
                        high = at
        return low, high


def build(block: Block, leaves: Mapping[str, Leaf]) -> tuple[SearchSpace, list[str]]:
    """The search space of a block, and everything that is wrong with it; the space is to be used
    only where the list is empty."""
    problems: list[str] = []
    found: dict[str, Distribution] = {}
    for path, given in block.items():
        at = dotted(("parameters", path))
        if path not in leaves:
            problems.append(f"{at}: {_unknown(path, leaves)}")
            continue
        if given is None:
            continue
        wrong: list[str] = []
        distribution = _distribution(leaves[path], given, at, wrong)
        problems.extend(wrong)
        if distribution is not None and not wrong:
            found[path] = distribution
    conditions = {
        path: _conditions(path, given.get("when") or {}, block, found, leaves, problems)
        for path, given in block.items()
        if given is not None
    }
    parameters = {
        path: Parameter(path=path, distribution=distribution, when=conditions[path])
        for path, distribution in found.items()
    }
    return SearchSpace(parameters=_ordered(parameters, problems)), problems


def _unknown(path: str, leaves: Mapping[str, Leaf]) -> str:
    inside = [leaf for leaf in leaves if leaf.startswith(f"{path}.")]
    if inside:
        return f"a section, not a setting; it has {', '.join(inside)}"
    if path == "data" or path.startswith("data."):
        return "the data cannot be searched: trials are compared on the same examples"
    return f"unknown key{hint(path.removeprefix('training.'), leaves)}"


def _infer(given: Mapping[str, Any]) -> str | None:
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical"
    if "q" in given:
        return "q_uniform"
    if "min" in given or "max" in given:
        ends = [given[k] for k in ("min", "max") if k in given]
        return "int_uniform" if all(isinstance(e, int) for e in ends) else "uniform"
    return "normal" if "mu" in given or "sigma" in given else None


def _distribution(leaf: Leaf, given: Mapping[str, Any], at: str, wrong: list[str]) -> Distribution | None:
    name = given.get("distribution") or _infer(given)
    name = "categorical" if name == "categorical_w_probabilities" else name
    if name is None:
        wrong.append(f"{at}: nothing to choose from; give value, values, or min and max")
        return None
    needed, optional = KEYS[name]
    wrong.extend(f"{at}.{k}: required by distribution {name}" for k in needed if k not in given)
    wrong.extend(
        f"{at}.{k}: not used by distribution {name}; remove it, or change the distribution"
        for k in given
        if k not in (*needed, *optional, "distribution", "when")
    )
    if wrong:
        return None
    if name == "constant":
        return Constant(value=_checked(leaf, given["value"], f"{at}.value", wrong))
    if name == "categorical":
        return _categorical(leaf, given, at, wrong)
    if not leaf.numeric:
        wrong.append(f"{at}: takes {describe(leaf.annotation)}; list what to try under values")
        return None
    return _normal(leaf, given, at, wrong) if name == "normal" else _range(leaf, name, given, at, wrong)


def _checked(leaf: Leaf, value: Any, at: str, wrong: list[str]) -> Any:
    plain, complaint = leaf.check(value)
    if complaint:
        wrong.append(f"{at}: {complaint}")
    return plain


def _categorical(leaf: Leaf, given: Mapping[str, Any], at: str, wrong: list[str]) -> Distribution | None:
    values = given["values"]
    if not values:
        wrong.append(f"{at}.values: must not be empty")
        return None
    choices = [_checked(leaf, value, f"{at}.values", wrong) for value in values]
    if wrong:
        return None
    wrong.extend(
        f"{at}.values: {show(c)} is there twice" for i, c in enumerate(choices) if choices.index(c) < i
    )
    weights = given.get("probabilities")
    if weights is not None:
        if len(weights) != len(choices):
            wrong.append(f"{at}.probabilities: must be as many as values, {len(choices)}, got {len(weights)}")
        if any(w <= 0 for w in weights):
            wrong.append(f"{at}.probabilities: must be > 0, got {show(weights)}; leave such values out")
        elif not math.isclose(sum(weights), 1, abs_tol=1e-6):
            wrong.append(f"{at}.probabilities: must add up to 1, got {sum(weights):.6g}")
    return Categorical(choices=tuple(choices), probabilities=None if weights is None else tuple(weights))


def _normal(leaf: Leaf, given: Mapping[str, Any], at: str, wrong: list[str]) -> Distribution | None:
    if not leaf.fractional:
        wrong.append(f"{at}: takes {describe(leaf.annotation)}, and normal draws fractions; use int_uniform")
        return None
    mu, sigma = given.get("mu", 0.0), given.get("sigma", 1.0)
    if sigma <= 0:
        wrong.append(f"{at}.sigma: must be > 0, got {show(sigma)}")
        return None
    low, high = leaf.bounds
    normal = Normal(mu=float(mu), sigma=float(sigma), low=low, high=high)
    below, above = normal.mass()
    if above - below < 0.01:
        wrong.append(
            f"{at}: normal with mu {show(mu)} and sigma {show(sigma)} hardly ever gives "
            f"{describe(leaf.annotation)}"
        )
    return normal


def _range(leaf: Leaf, name: str, given: Mapping[str, Any], at: str, wrong: list[str]) -> Distribution | None:
    low, high = given["min"], given["max"]
    log = "log" in name
    if low > high:
        wrong.append(f"{at}: min {show(low)} > max {show(high)}")
        return None
    if name == "int_uniform" and any(float(end) != int(end) for end in (low, high)):
        wrong.append(f"{at}: int_uniform needs whole numbers, got min {show(low)} and max {show(high)}")
        return None
    if log and low <= 0:
        wrong.append(f"{at}.min: must be > 0 for distribution {name}, got {show(low)}")
        return None
    if not leaf.fractional and name in ("uniform", "log_uniform_values"):
        instead = "q_log_uniform_values" if log else "int_uniform"
        wrong.append(f"{at}: takes {describe(leaf.annotation)}, and {name} draws fractions; use {instead}")
        return None
    for end in ("min", "max"):
        _checked(leaf, given[end], f"{at}.{end}", wrong)
    if wrong:
        return None
    if name == "int_uniform":
        return _whole(leaf, IntUniform(low=int(low), high=int(high)), at, wrong)
    if not name.startswith("q_"):
        return Uniform(low=float(low), high=float(high), log=log)

    step = given.get("q", 1)
    if step <= 0:
        wrong.append(f"{at}.q: must be > 0, got {show(step)}")
        return None
    if (high - low) / step > _MAX_STEPS or max(abs(low), abs(high)) / step > _MAX_STEPS:
        wrong.append(f"{at}.q: {show(step)} is too fine for numbers up to {show(high)}")
        return None
    exact = Decimal(repr(step))
    first, last = (
        math.ceil(Decimal(repr(low)) / exact - _DUST),
        math.floor(Decimal(repr(high)) / exact + _DUST),
    )
    # What rounding adds at an end may be what the setting, or a logarithm, does not take.
    first += bool(leaf.check(multiple(first, step))[1]) or (log and first <= 0)
    last -= bool(leaf.check(multiple(last, step))[1])
    if first > last:
        wrong.append(f"{at}: no multiple of q {show(step)} lies between min {show(low)} and max {show(high)}")
        return None
    if leaf.fractional:
        return Uniform(low=multiple(first, step), high=multiple(last, step), log=log, step=multiple(1, step))
    if step != int(step):
        wrong.append(f"{at}.q: must be a whole number, as the setting is, got {show(step)}")
        return None
    step = int(step)
    return _whole(leaf, IntUniform(low=first * step, high=last * step, step=step, log=log), at, wrong)


def _whole(leaf: Leaf, found: IntUniform, at: str, wrong: list[str]) -> IntUniform:
    """Between its ends a setting that takes a few numbers only may still refuse one."""
    if any(get_origin(k) is Literal for k in kinds(leaf.annotation)):
        for value in range(found.low, min(found.high, found.low + _CHECKED * found.step) + 1, found.step):
            if not wrong:
                _checked(leaf, value, at, wrong)
    return found


def _conditions(
    path: str,
    when: Mapping[str, Any],
    block: Block,
    found: Mapping[str, Distribution],
    leaves: Mapping[str, Leaf],
    problems: list[str],
) -> tuple[Condition, ...]:
    conditions = []
    for other, wanted in when.items():
        at = dotted(("parameters", path, "when"))
        if other not in block:
            known = f"; {other} is set, not searched: add it to parameters" if other in leaves else None
            problems.append(f"{at}: unknown parameter {key(other)}{known or hint(other, block)}")
            continue
        if other not in found:
            continue  # has a problem of its own
        listed = wanted if isinstance(wanted, list) else [wanted]
        wrong: list[str] = [] if listed else [f"{at}.{key(other)}: must not be empty"]
        values = []
        for raw in listed:
            complaint: list[str] = []
            value = _checked(leaves[other], raw, f"{at}.{key(other)}", complaint)
            if complaint or not found[other].takes(value):
                wrong.append(
                    f"{at}.{key(other)}: {show(raw)} is never a value of {other} ({found[other].describe()})"
                )
            values.append(value)
        problems.extend(wrong)
        conditions.append(Condition(path=other, values=tuple(values)))
    return tuple(conditions)


def _ordered(parameters: Mapping[str, Parameter], problems: list[str]) -> tuple[Parameter, ...]:
    """Parents before children, else as in the file."""
    done: dict[str, Parameter] = {}
    waiting = dict(parameters)
    while waiting:
        ready = next(
            (p for p in waiting.values() if all(c.path in done or c.path not in parameters for c in p.when)),
            None,
        )
        if ready is None:
            problems.append(f"parameters: {_circle(waiting)}: remove one of these conditions")
            break
        done[ready.path] = waiting.pop(ready.path)
    return tuple(done.values())


def _circle(waiting: Mapping[str, Parameter]) -> str:
    """Everything that waits has a parent that waits, so that going from parent to parent comes round."""
    seen: list[str] = []
    at = next(iter(waiting))
    while at not in seen:
        seen.append(at)
        at = next(c.path for c in waiting[at].when if c.path in waiting)
    return "`when` goes round in a circle: " + " -> ".join([*seen[seen.index(at) :], at])


def to_block(space: SearchSpace) -> dict[str, dict[str, Any]]:
    """The one canonical block of a space: distributions named, numbers typed, parents first."""
    block: dict[str, dict[str, Any]] = {}
    for parameter in space.parameters:
        block[parameter.path] = _keys(parameter.distribution)
        if parameter.when:
            block[parameter.path]["when"] = {c.path: list(c.values) for c in parameter.when}
    return block


def _keys(found: Distribution) -> dict[str, Any]:
    match found:
        case Constant():
            return {"value": found.value}
        case Categorical(probabilities=None):
            return {"values": list(found.choices)}
        case Categorical():
            return {"values": list(found.choices), "probabilities": list(found.probabilities or ())}
        case Normal():
            return {"distribution": "normal", "mu": found.mu, "sigma": found.sigma}
    ends = {"min": found.low, "max": found.high}
    if isinstance(found, IntUniform) and found.step == 1 and not found.log:
        return {"distribution": "int_uniform", **ends}
    name = "log_uniform_values" if found.log else "uniform"
    return (
        {"distribution": name, **ends}
        if found.step is None
        else {"distribution": f"q_{name}", **ends, "q": found.step}
    )
