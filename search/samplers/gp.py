"""Bayesian optimisation with a Gaussian process (Jones et al. 1998) over the whole conditional space."""

from __future__ import annotations

import numpy as np
import optuna

from search.config import SamplerConfig
from search.samplers.cube import Cube, Suggest
from search.samplers.feasibility import likely, runs
from search.samplers.gaussian import GaussianProcess, expected_improvement, probit
from search.samplers.history import worth
from search.samplers.proposer import Proposer, Request

STARTUP_TRIALS = 8
# What one fit takes in: the best of the trials, and as many of the others.
_FITTED = 100
_CANDIDATES = 384
_BEST = 8
_NEAR = 16


def gp(config: SamplerConfig, seed: int, suggest: Suggest) -> optuna.samplers.BaseSampler:
    """The candidate with the highest expected improvement.

    The target is a trial's place among all, farther ones before nearer ones, so that those that ended
    early count; infeasible ones are last. Running trials count as what is expected of them.
    """
    return Proposer(lambda request: propose(request, config), suggest, seed)


def propose(request: Request, config: SamplerConfig) -> np.ndarray:
    """The best candidate; one by chance before `config.startup_trials` have a result."""
    history, cube, rng = request.history, request.cube, request.rng
    startup = STARTUP_TRIALS if config.startup_trials is None else config.startup_trials
    told = np.flatnonzero(history.bad | (history.farthest > 0))
    if (~history.bad[told]).sum() < max(startup, 2):
        return by_chance(request)
    order = told[np.argsort(worth(history)[told])]
    targets = np.full(len(history), np.nan)
    targets[order] = probit((np.arange(len(order)) + 0.5) / len(order))
    kept = fitted(order, rng, _FITTED)
    features = cube.features(history.points)
    model = GaussianProcess(features[kept], targets[kept])
    begun = np.flatnonzero(history.running & np.isnan(targets))
    if len(begun):
        targets[begun] = model.predict(features[begun])[0]
        kept = np.append(kept, begun)
        model = model.refitted(features[kept], targets[kept])
    points = candidates(cube, history.points[order[-_BEST:]], rng)
    mean, deviation = model.predict(cube.features(points))
    gain = expected_improvement(mean, deviation, float(np.nanmax(targets)))
    chances = runs(request, points)
    gain = np.where(chances > min(0.5, chances.max() - 1e-9), gain, -1.0)
    return points[int(np.argmax(gain))]


def by_chance(request: Request) -> np.ndarray:
    """A random point; where trials were infeasible, one that is likely to run."""
    return likely(request, request.rng.random((32, request.cube.size)))


def fitted(order: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """Of trials in ascending order, at most `most`: the best half, the others by chance."""
    if len(order) <= most:
        return order
    best = order[-(most // 2) :]
    return np.append(best, rng.choice(order[: -(most // 2)], most - len(best), replace=False))


def candidates(cube: Cube, best: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points [n, d] anywhere and near the `best` [m, d], their inactive axes NaN."""
    anywhere = rng.random((_CANDIDATES, cube.size))
    centres = np.repeat(np.where(np.isnan(best), rng.random(best.shape), best), _NEAR, axis=0)
    spread = rng.choice([0.03, 0.1, 0.2], size=(len(centres), 1))
    moved = centres + rng.normal(size=centres.shape) * spread * (rng.random(centres.shape) < 0.5)
    outside = (moved < 0) | (moved > 1)
    near = np.where(outside, rng.random(moved.shape), moved)
    return cube.masked(np.concatenate([anywhere, near]))
