"""What the trials of a sweep may ask for, known before the first one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice, product

from search.preflight import extremes
from search.space import IntUniform, Parameter, active
from search.spec import SweepSpec, trial_settings
from training.schedules import phases

_MAX_DEPTHS = 64
_MAX_COMBINATIONS = 4096


def boundaries(spec: SweepSpec, num_blocks: int) -> tuple[int, ...]:
    """How many leading blocks may be frozen in a phase of some trial: what is above 0, ascending.

    A hint, not a bound: schedules that draw at random are taken at one seed, and other models of the
    same sweep may have other blocks.
    """
    parameters = [p for p in spec.space.parameters if p.path.startswith("unfreezing.") or p.path == "epochs"]
    found: set[int] = set()
    for combination in islice(product(*map(_values, parameters)), _MAX_COMBINATIONS):
        values = dict(zip((p.path for p in parameters), combination, strict=True))
        used = set(active(spec.space, values))
        chosen = {path: value for path, value in values.items() if path in used}
        with suppress(ValueError):  # one that does not go together is no trial
            training = trial_settings(spec, chosen, seed=0).training
            planned = phases(training.unfreezing, num_blocks, training.epochs)
            found.update(phase.boundary(num_blocks) for phase in planned)
    return tuple(sorted(boundary for boundary in found if boundary > 0))


def _values(parameter: Parameter) -> Iterable[object]:
    distribution = parameter.distribution
    if isinstance(distribution, IntUniform):
        values = range(distribution.low, distribution.high + 1, distribution.step)
        if len(values) <= _MAX_DEPTHS:
            return values
    return extremes(parameter)
