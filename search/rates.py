"""What trials cost, from a probe of this machine or from an earlier sweep, as timelines for the forecast."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

from search.forecast import Rates, Timeline
from search.records import TrialRecord
from search.spec import SweepSpec, trial_settings
from training.config import TrialConfig
from training.plan import Plan, Stretch, plan
from training.timing import Cost, Costs, Shape

# A sweep takes these besides what a probe sees, as measured on two cores: Ray comes up, then one after the
# other the actor that holds a gang, Ray Train's controller and the workers start and import what they need;
# an order goes to a warm gang; the best model is written and everything sent home.
_RAY_S, _STARTS, HANDOVER_S, _END_S = 10.0, 2.5, 0.3, 5.0


def around(start_s: float) -> float:
    """Seconds of a sweep before its first trial and after its last, where a process starts in `start_s`."""
    return _RAY_S + _STARTS * start_s + _END_S


def depth_of(stretch: Stretch, num_blocks: int) -> int:
    """Units above the frozen prefix, as in `training.timing.Shape`."""
    return num_blocks - stretch.phase.boundary(num_blocks)


def shapes(configs: Iterable[TrialConfig], *, num_blocks: int, num_train: int, workers: int) -> list[Shape]:
    """The shapes to probe, between which those of `configs` lie: their shallowest and deepest phases and one
    between, each with the smallest and the largest batch of a worker."""
    depths: set[int] = set()
    sizes: set[int] = set()
    for config in configs:
        course = plan(config.training, num_blocks=num_blocks, num_examples=num_train, seed=config.seed)
        depths |= {depth_of(stretch, num_blocks) for stretch in course.stretches}
        sizes.add(_share(config, workers))
    ordered = sorted(depths)
    chosen = dict.fromkeys([ordered[0], ordered[len(ordered) // 2], ordered[-1]])
    return [Shape(depth=d, batch_size=b) for d in chosen for b in dict.fromkeys([min(sizes), max(sizes)])]


def _share(config: TrialConfig, workers: int) -> int:
    return math.ceil(config.training.batch_size / workers)


def probed(found: Costs, *, num_blocks: int, num_train: int, num_validation: int, workers: int) -> Rates:
    """Timelines of what a probe measured, between its shapes by interpolation."""
    by_depth: dict[int, list[Cost]] = {}
    for cost in found.costs:
        by_depth.setdefault(cost.shape.depth, []).append(cost)

    def at(name: str, depth: int, batch: int) -> float:
        values = {
            d: _between([(c.shape.batch_size, getattr(c, name)) for c in of], batch)
            for d, of in by_depth.items()
        }
        return max(0.0, _between(sorted(values.items()), depth))

    def timeline(config: TrialConfig) -> Timeline:
        course = plan(config.training, num_blocks=num_blocks, num_examples=num_train, seed=config.seed)
        batch = _share(config, workers)
        evaluations: list[tuple[float, float]] = []
        first: dict[int, float] = {}
        seconds = end_s = 0.0
        for stretch in course.stretches:
            depth = depth_of(stretch, num_blocks)
            step_s = at("step_s", depth, batch)
            scale = num_validation / max(1, found.costs[0].evaluated)
            seconds += at("begin_s", depth, batch)
            done = stretch.start
            for step in sorted(step for step in course.evaluations if done < step <= stretch.stop):
                seconds += (step - done) * step_s + at("evaluation_s", depth, batch) * scale
                evaluations.append((course.evaluations[step], seconds))
                done = step
            seconds += (stretch.stop - done) * step_s
            end_s = at("end_s", depth, batch)
            seconds += end_s
            store_s = _between([(d, max(c.store_s for c in of)) for d, of in by_depth.items()], depth)
            first[depth] = max(0.0, store_s) * num_train / max(1, found.costs[0].trained)
        return Timeline(evaluations=tuple(evaluations), end_s=end_s, first=first)

    return timeline


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear between points, and on beyond the outermost two."""
    ordered = sorted(points)
    if len(ordered) == 1:
        return ordered[0][1]
    at = min(max(bisect_left([p[0] for p in ordered], x), 1), len(ordered) - 1)
    (x0, y0), (x1, y1) = ordered[at - 1], ordered[at]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def remembered(
    spec: SweepSpec, trials: Iterable[TrialRecord], *, num_blocks: int, num_train: int, scale: float
) -> Rates:
    """Timelines of what an earlier sweep's trials took an epoch, at the depth and batch size most like it.

    Args:
        spec: of the earlier sweep.
        trials: its own.
        num_train: examples of this sweep.
        scale: how many times as many as the earlier one had.

    Raises:
        ValueError: where none of its trials was evaluated.
    """
    seen: dict[tuple[int, int], list[float]] = {}
    for trial in trials:
        if trial.same_as is not None:
            continue
        config = trial_settings(spec, trial.params, trial.seed)
        course = plan(config.training, num_blocks=num_blocks, num_examples=num_train, seed=config.seed)
        points = [(0.0, 0.0), *((r.epochs, r.seconds) for r in trial.results)]
        for (epochs, seconds), (later, later_s) in pairwise(points):
            if later > epochs and later_s > seconds:
                key = (_depth_at(course, (epochs + later) / 2, num_blocks), config.training.batch_size)
                seen.setdefault(key, []).append((later_s - seconds) / (later - epochs))
    if not seen:
        raise ValueError(
            f"--from {spec.name}: none of its trials has been evaluated; give another, or --probe"
        )
    rates = {key: statistics.mean(values) for key, values in seen.items()}

    def rate(depth: int, batch: int) -> float:
        return rates[min(rates, key=lambda k: (abs(k[0] - depth), abs(math.log(k[1] / batch))))]

    def timeline(config: TrialConfig) -> Timeline:
        course = plan(config.training, num_blocks=num_blocks, num_examples=num_train, seed=config.seed)
        evaluations: list[tuple[float, float]] = []
        before = seconds = 0.0
        for epochs in sorted(course.evaluations.values()):
            depth = _depth_at(course, (before + epochs) / 2, num_blocks)
            seconds += scale * rate(depth, config.training.batch_size) * (epochs - before)
            evaluations.append((epochs, seconds))
            before = epochs
        return Timeline(evaluations=tuple(evaluations))

    return timeline


def _depth_at(course: Plan, epochs: float, num_blocks: int) -> int:
    step = min(int(epochs * course.steps_per_epoch), course.total_steps - 1)
    return next(depth_of(s, num_blocks) for s in course.stretches if s.start <= step < s.stop)
