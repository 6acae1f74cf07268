"""A Gaussian process in NumPy: Matérn 5/2, a length a feature, fitted by its marginal likelihood.

Rasmussen & Williams 2006, chapters 2 and 5. Small on purpose: a suggestion has to be had in
milliseconds, without a deep-learning library in the driver.
"""

from __future__ import annotations

import copy
import math
from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()
_NOISE = 0.1
_LENGTH = 0.5
_STEPS = 6
_JITTER = 1e-6


class GaussianProcess:
    """Predicts a standardised target from features in [0, 1].

    Length scales and noise are the most likely ones under log-normal priors, found by a few steps of
    Rprop (Riedmiller & Braun 1993); the signal's variance is maximised in closed form.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray, steps: int = _STEPS) -> None:
        """`features` [n, f], `targets` [n]; n >= 1."""
        self._features = features
        self._mean = float(targets.mean())
        self._scale = float(targets.std()) + 1e-9
        standard = (targets - self._mean) / self._scale
        count, size = features.shape
        prior = np.append(np.full(size, math.log(_LENGTH)), math.log(_NOISE))
        squares = [(features[:, k, None] - features[None, :, k]) ** 2 for k in range(size)]
        theta, stride, before = prior.copy(), np.full(size + 1, 0.3), np.zeros(size + 1)
        best = math.inf
        for step in range(steps + 1):
            lengths, noise = np.exp(theta[:size]), math.exp(theta[size])
            distance = np.sqrt(
                5 * sum((s / scale**2 for s, scale in zip(squares, lengths, strict=True)), np.zeros(()))
                + np.zeros((count, count))
            )
            decay = np.exp(-distance)
            kernel = (1 + distance + distance**2 / 3) * decay
            kernel[np.diag_indices(count)] += noise + _JITTER
            cholesky = np.linalg.cholesky(kernel)
            inverse = np.linalg.inv(kernel)
            weights = inverse @ standard
            variance = max(float(standard @ weights) / count, 1e-12)
            loss = (
                0.5 * count * math.log(variance)
                + float(np.log(np.diag(cholesky)).sum())
                + 0.5 * float(((theta - prior) ** 2).sum())
            )
            if loss < best:
                best = loss
                self._lengths, self._inverse, self._weights = lengths, inverse, weights
                self._variance, self._noise = variance, noise
            if step == steps:
                break
            pull = np.outer(weights, weights) / variance - inverse
            slope = pull * (5 / 3) * (1 + distance) * decay
            gradient = np.array(
                [
                    -0.5 * float((slope * s).sum()) / scale**2
                    for s, scale in zip(squares, lengths, strict=True)
                ]
                + [-0.5 * float(np.trace(pull)) * noise]
            )
            gradient += theta - prior
            turned = gradient * before < 0
            stride = np.where(turned, stride * 0.5, np.where(gradient * before > 0, stride * 1.3, stride))
            stride = np.minimum(stride, 1.0)
            gradient = np.where(turned, 0.0, gradient)
            theta = np.clip(theta - np.sign(gradient) * stride, prior - 4, prior + 4)
            before = gradient

    def refitted(self, features: np.ndarray, targets: np.ndarray) -> GaussianProcess:
        """On other data, with the length scales and the noise of this one."""
        other = copy.copy(self)
        other._features = features
        other._mean = float(targets.mean())
        other._scale = float(targets.std()) + 1e-9
        kernel = self._kernel(features, features)
        kernel[np.diag_indices(len(features))] += self._noise + _JITTER
        other._inverse = np.linalg.inv(kernel)
        standard = (targets - other._mean) / other._scale
        other._weights = other._inverse @ standard
        other._variance = max(float(standard @ other._weights) / len(targets), 1e-12)
        return other

    def _kernel(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        one, other = one / self._lengths, other / self._lengths
        squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * one @ other.T
        distance = np.sqrt(5 * np.maximum(squares, 0.0))
        return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [m] of the target without noise, at `features` [m, f]."""
        kernel = self._kernel(features, self._features)
        mean = kernel @ self._weights
        spread = self._variance * np.maximum(1 - ((kernel @ self._inverse) * kernel).sum(axis=1), 1e-9)
        return mean * self._scale + self._mean, np.sqrt(spread) * self._scale


def probit(quantiles: np.ndarray) -> np.ndarray:
    """Inverse of the normal distribution function, on (0, 1)."""
    return np.array([_NORMAL.inv_cdf(q) for q in quantiles])


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: float) -> np.ndarray:
    """How much more than `best` is to be expected (Jones et al. 1998)."""
    z = (mean - best) / deviation
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    below = np.array([_NORMAL.cdf(float(v)) for v in z])
    return np.maximum(deviation * (z * below + density), 0.0)
