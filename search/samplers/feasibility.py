"""Which candidates are likely to run: learnt from the trials that were infeasible or diverged."""

from __future__ import annotations

import numpy as np

from search.samplers.proposer import Request

_NEIGHBOURS = 5


def chance(features: np.ndarray, known: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """The chance [n] that each of `features` [n, f] runs, by the nearest of `known` [m, f].

    The neighbours count by the inverse of their squared distance, beside one feasible
    trial at the distance of the farthest: what nobody knows anything of is tried.
    """
    if not bad.any():
        return np.ones(len(features))
    away = ((features[:, None, :] - known[None, :, :]) ** 2).sum(axis=2)
    count = min(_NEIGHBOURS, len(known))
    nearest = np.argpartition(away, count - 1, axis=1)[:, :count]
    distances = np.take_along_axis(away, nearest, axis=1) + 1e-6
    weights = 1 / distances
    prior = 1 / distances.max(axis=1)
    ran = (weights * ~bad[nearest]).sum(axis=1)
    return (ran + prior) / (weights.sum(axis=1) + prior)


def runs(request: Request, points: np.ndarray) -> np.ndarray:
    """The chance [n] that each of `points` [n, d] runs, by the trials so far."""
    cube, history = request.cube, request.history
    if not history.bad.any():
        return np.ones(len(points))
    known = ~history.running
    features = cube.features(cube.masked(points))
    return chance(features, cube.features(history.points[known]), history.bad[known])


def likely(request: Request, points: np.ndarray) -> np.ndarray:
    """The first of `points` that is more likely to run than not; without one, the likeliest."""
    chances = runs(request, points)
    return points[int(np.argmax(np.minimum(chances, 0.5)))]
