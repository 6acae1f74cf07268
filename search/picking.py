"""Trials picked by hand: values that are checked against the space before a trial is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search.loading import scalar
from search.points import active_part
from search.problems import SpecError, hint
from search.space import SearchSpace, contains
from search.spec import LEAVES


def assignments(given: Sequence[str]) -> dict[str, Any]:
    """`PATH=VALUE` texts as values by path; the values are YAML.

    Raises:
        SpecError: one is not of this form, or a path is there twice.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    for text in given:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            problems.append(f"{text}: must be PATH=VALUE, such as learning_rate=1e-4")
        elif path.strip() in values:
            problems.append(f"{path.strip()}: is there twice; remove one")
        else:
            try:
                values[path.strip()] = scalar(value)
            except SpecError as error:
                problems += [f"{path.strip()}: {line}" for line in error.problems]
    if problems:
        raise SpecError(problems)
    return values


def picked(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as the space has them.

    Raises:
        SpecError: with everything that is wrong: a path that is not searched, a value that the space
            does not have, a parameter that means nothing beside the others.
    """
    problems: list[str] = []
    found: dict[str, Any] = {}
    searched = [parameter.path for parameter in space.parameters]
    for path, value in values.items():
        if path not in searched:
            why = "this sweep does not search it" if path in LEAVES else "unknown parameter"
            problems.append(f"{path}: {why}{hint(path, searched)}")
            continue
        checked, complaint = LEAVES[path].check(value)
        distribution = space[path].distribution
        if complaint is None and not contains(distribution, checked):
            complaint = f"must be one that the sweep can draw ({distribution.describe()}), got {value!r}"
        if complaint is not None:
            problems.append(f"{path}: {complaint}")
        found[path] = checked
    if not problems:
        live = active_part(space, found)
        for path in found:
            if path not in live:
                conditions = " and ".join(
                    f"{c.path} is {' or '.join(map(str, c.values))}" for c in space[path].when
                )
                problems.append(f"{path}: means nothing here, only where {conditions}; leave it out")
    if problems:
        raise SpecError(problems)
    return found


def changed(space: SearchSpace, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values with `changes` laid over; what means nothing any more beside them is left out.

    Raises:
        SpecError: as `picked`, for the changes.
    """
    known = {path: value for path, value in values.items() if path in {p.path for p in space.parameters}}
    live = active_part(space, {**known, **changes})
    return picked(space, {**live, **changes})
