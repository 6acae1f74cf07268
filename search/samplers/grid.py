"""Every combination once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search.config import SamplerConfig
from search.samplers.cube import Draft, Suggest
from search.samplers.proposer import Whole


class SpaceExhausted(Exception):
    """Every point of the space has been tried."""


def grid(config: SamplerConfig, seed: int, suggest: Suggest) -> BaseSampler:
    """The first combination, in the order of the parameters, that no trial has.

    Raises:
        ValueError: a parameter is continuous.
    """
    next(points(suggest))
    return _Grid(suggest)


class _Grid(Whole):
    def __init__(self, suggest: Suggest) -> None:
        self._suggest = suggest

    def choose(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> tuple[Mapping[str, Any], Mapping[str, BaseDistribution]]:
        tried = {_key(t.params) for t in study.get_trials(deepcopy=False) if t.number != trial.number}
        for params, distributions in points(self._suggest):
            if _key(params) not in tried:
                return params, distributions
        raise SpaceExhausted

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return _values(param_name, param_distribution)[0]


def points(suggest: Suggest) -> Iterator[tuple[dict[str, Any], dict[str, BaseDistribution]]]:
    """All combinations of active parameters, as Optuna stores them, with their distributions.

    Raises:
        ValueError: a parameter is continuous.
    """
    path: list[int] = []
    while True:
        params, distributions, counts = _walk(suggest, path)
        yield params, distributions
        path = (path + [0] * len(counts))[: len(counts)]
        while path and path[-1] + 1 >= counts[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


def _walk(suggest: Suggest, path: list[int]) -> tuple[dict[str, Any], dict[str, BaseDistribution], list[int]]:
    """Asks for each parameter in turn and takes the value that `path` says, beyond its end the first.

    Returns the values, their distributions, and of how many each was.
    """
    counts: list[int] = []
    distributions: dict[str, BaseDistribution] = {}

    def choose(name: str, distribution: Callable[[], BaseDistribution]) -> Any:
        distributions[name] = distribution()
        values = _values(name, distributions[name])
        at = len(counts)
        counts.append(len(values))
        return values[path[at] if at < len(path) else 0]

    draft = Draft(choose)
    suggest(draft)
    return draft.params, distributions, counts


def _values(name: str, distribution: BaseDistribution) -> list[Any]:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return list(choices)
        case IntDistribution(low=low, high=high, step=step):
            return list(range(low, high + 1, step))
        case FloatDistribution(low=low, high=high, step=float() as step):
            return [min(low + i * step, high) for i in range(round((high - low) / step) + 1)]
        case FloatDistribution(low=low, high=high) if low == high:
            return [low]
        case _:
            path = name.removesuffix(".quantile").removesuffix(".unrounded")
            raise ValueError(
                f"search.sampler.type: grid tries every value, and parameters.{path} has no end of them; "
                f"give it `values`, or use another sampler"
            )


def _key(params: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))
