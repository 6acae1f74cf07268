"""Rules between settings of different sections of a sweep file. Each gives lines for `SpecError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search.config import ResourcesConfig, SearchConfig
from search.objectives import COSTS
from search.problems import hint, show
from search.space import SearchSpace, contains

_FOR_SEVERAL = ("auto", "tpe", "nsga2", "qmc", "random", "grid")


def broken(space: SearchSpace, search: SearchConfig, resources: ResourcesConfig) -> list[str]:
    """What is wrong, one line each; nothing where all is well."""
    return [
        *_objectives(search),
        *_points(space, search.points),
        *_budget(search, resources),
        *_shares(resources),
    ]


def _shares(resources: ResourcesConfig) -> list[str]:
    found = []
    for name in ("cpus_per_worker", "gpus_per_worker"):
        amount = getattr(resources, name)
        if amount != "auto" and amount > 1 and not float(amount).is_integer():
            found.append(f"resources.{name}: must be a whole number or less than 1, got {amount:g}")
    gpus = resources.gpus_per_worker
    if gpus != "auto" and 0 < gpus < 1 and resources.most_workers > 1:
        # Their collectives go over NCCL, which wants a GPU for each rank.
        found.append(
            f"resources.gpus_per_worker: workers of one trial cannot share a GPU, got {gpus:g} with "
            f"{resources.most_workers} workers; set it to 1, or resources.workers to 1"
        )
    return found


def _objectives(search: SearchConfig) -> list[str]:
    found = []
    names = [search.metric.name]
    for number, objective in enumerate(search.objectives):
        at = f"search.objectives[{number}].name"
        if objective.name in names:
            found.append(f"{at}: {objective.name} is there already; remove one")
        elif objective.name.startswith("cost/") and objective.name not in COSTS:
            found.append(f"{at}: unknown cost {show(objective.name)}{hint(objective.name, COSTS)}")
        names.append(objective.name)
    if search.metric.name.startswith("cost/"):
        found.append(f"search.metric.name: {search.metric.name} is a cost; put it under search.objectives")
    if search.objectives and search.sampler.type not in _FOR_SEVERAL:
        found.append(
            f"search.sampler.type: {search.sampler.type} goes by search.metric alone; with "
            f"search.objectives use {', '.join(_FOR_SEVERAL)}"
        )
    return found


def _points(space: SearchSpace, points: Sequence[Mapping[str, Any]]) -> list[str]:
    paths = [parameter.path for parameter in space.parameters]
    found = []
    for number, point in enumerate(points):
        for path, value in point.items():
            at = f"search.points[{number}].{path}"
            if path not in paths:
                found.append(f"{at}: is not searched; `parameters` has {', '.join(paths)}")
            elif not contains(space[path].distribution, value):
                words = space[path].distribution.describe()
                found.append(f"{at}: must be one that `parameters` can draw ({words}), got {show(value)}")
    return found


def _budget(search: SearchConfig, resources: ResourcesConfig) -> list[str]:
    found = []
    if search.budget.cost is not None and not resources.prices:
        found.append("search.budget.cost: needs resources.prices, such as {default: 1.5} an hour")
    if search.budget.gpu_hours is not None and not resources.on_gpu:
        found.append("search.budget.gpu_hours: trials hold no GPU; use search.budget.hours")
    return found
