"""NSGA-II (Deb et al. 2002), one child at a time, so that nobody waits for a generation."""

from __future__ import annotations

import numpy as np
import optuna

from search.config import SamplerConfig
from search.samplers.cube import Suggest
from search.samplers.feasibility import likely
from search.samplers.history import History
from search.samplers.proposer import Proposer, Request

_POPULATION = 20
_CHILDREN = 16
_SPREAD = 0.1


def nsga2(config: SamplerConfig, seed: int, suggest: Suggest) -> optuna.samplers.BaseSampler:
    """A child of two of the best trials so far; also for several objectives."""
    population = _POPULATION if config.startup_trials is None else max(config.startup_trials, 2)
    return Proposer(lambda request: _propose(request, population), suggest, seed)


def _propose(request: Request, population: int) -> np.ndarray:
    history, rng = request.history, request.rng
    objectives = _objectives(history)
    usable = np.flatnonzero(~np.isnan(objectives).any(axis=1) & ~history.bad)
    if len(history) < population or len(usable) < 2:
        children = rng.random((_CHILDREN, request.cube.size))
    else:
        order = usable[_order(objectives[usable])][:population]
        children = np.stack([_child(history.points[order], rng) for _ in range(_CHILDREN)])
    return likely(request, children)


def _objectives(history: History) -> np.ndarray:
    """[n, objectives], more is better. With one objective, trials that ended early count by their best."""
    if history.values.shape[1] > 1:
        return history.values
    return history.best[:, None]


def _order(objectives: np.ndarray) -> np.ndarray:
    """Indices, best first: by front, then by crowding distance, the loneliest first."""
    left = np.arange(len(objectives))
    order: list[int] = []
    while len(left):
        own = objectives[left]
        no_worse = np.all(own[None] >= own[:, None], axis=2)
        beaten = np.any(no_worse & np.any(own[None] > own[:, None], axis=2), axis=1)
        front = left[~beaten]
        order += list(front[np.argsort(-_crowding(objectives[front]), kind="stable")])
        left = left[beaten]
    return np.array(order, dtype=int)


def _crowding(front: np.ndarray) -> np.ndarray:
    distance = np.zeros(len(front))
    if front.shape[1] == 1:
        return distance
    for column in front.T:
        order = np.argsort(column, kind="stable")
        span = max(column[order[-1]] - column[order[0]], 1e-12)
        gaps = np.full(len(front), np.inf)
        gaps[order[1:-1]] = (column[order[2:]] - column[order[:-2]]) / span
        distance += gaps
    return distance


def _child(parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uniform crossover of two parents, each the better of two picked at random, then mutation."""
    first, second = (parents[rng.integers(len(parents), size=2).min()] for _ in range(2))
    child = np.where(rng.random(len(first)) < 0.5, first, second)
    child = np.where(np.isnan(child), np.where(np.isnan(first), second, first), child)
    size = len(child)
    moved = np.clip(child + rng.normal(scale=_SPREAD, size=size), 0, 1)
    moved = np.where(rng.random(size) < 0.2, rng.random(size), moved)
    mutates = rng.random(size) < max(1 / size, 0.1)
    mutates[rng.integers(size)] = True  # no child is its parent's double
    return np.where(np.isnan(child), rng.random(size), np.where(mutates, moved, child))
