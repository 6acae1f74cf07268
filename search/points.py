"""Points that are tried first: those of the file, and the customary setting of the model's family.

A point is values by path. What the space does not have is left out, and what a point does not say is drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from search.duplicates import setting
from search.space import Categorical, Constant, Distribution, IntUniform, Normal, SearchSpace, Uniform
from search.spec import SweepSpec

# Learning rates of full fine-tuning, as the papers of the families give them: BERT (Devlin et al. 2019),
# RoBERTa (Liu et al. 2019), CamemBERT (Martin et al. 2020), DistilBERT (Sanh et al. 2019), ELECTRA (Clark et
# al. 2020), DeBERTa (He et al. 2021), GPT (Radford et al. 2018).
_LEARNING_RATES = {
    "bert": 2e-5,
    "roberta": 2e-5,
    "xlm-roberta": 2e-5,
    "camembert": 1e-5,
    "distilbert": 5e-5,
    "electra": 1e-4,
    "deberta-v2": 2e-5,
    "gpt2": 6.25e-5,
}
_LEARNING_RATE = 2e-5
# Narrow models take more: Turc et al. 2019 search 3e-5 to 3e-4 for small BERTs.
_SMALL_WIDTH, _SMALL_LEARNING_RATE = 640, 1e-4
# And so does a fresh head alone (Howard & Ruder 2018 begin with it, at 1e-3 and above).
_HEAD_LEARNING_RATE = 1e-3
_BATCH_SIZE = 32
# The most customary first.
_SCHEDULES = ("full", "gradual", "top", "bottom-up", "lisa", "chain-thaw", "head")


def first_points(spec: SweepSpec) -> list[dict[str, Any]]:
    """The points that a sweep tries first, the file's own before the customary one."""
    points = [active_part(spec.space, point) for point in spec.search.points]
    if spec.search.default_points:
        points.append(customary(spec))
    return [point for point in points if point]


def customary(spec: SweepSpec) -> dict[str, Any]:
    """The customary setting of the model's family, as near as the space comes to it."""
    point: dict[str, Any] = {}
    family = _family(spec)
    schedule = _near(spec.space, "unfreezing.schedule", _SCHEDULES) or spec.training.unfreezing.schedule
    rate = _HEAD_LEARNING_RATE if schedule == "head" else family
    wanted = {"unfreezing.schedule": (schedule,), "learning_rate": (rate,), "batch_size": (_BATCH_SIZE,)}
    for parameter in spec.space.parameters:
        path = parameter.path
        if path in wanted:
            choices: tuple[Any, ...] = wanted[path]
        elif path.startswith(("model.", "task.")):
            continue  # no value of these is more customary than another
        else:
            choices = (setting(spec.training, path),)
        value = _near(spec.space, path, choices)
        if value is not None:
            point[path] = value
    return active_part(spec.space, point)


def stored(space: SearchSpace, point: Mapping[str, Any]) -> dict[str, Any]:
    """A point as Optuna stores its parameters."""
    found = {}
    for path, value in point.items():
        distribution = space[path].distribution
        if not isinstance(distribution, Constant):
            found[space[path].key] = distribution.encode(value)
    return found


def active_part(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that mean something beside the others, in the order of the space.

    A value whose conditions may or may not hold, as they are about parameters without a value, is kept.
    """
    kept: dict[str, Any] = {}
    dropped: set[str] = set()
    for parameter in space.parameters:
        fails = any(
            c.path in dropped or (c.path in kept and kept[c.path] not in c.values) for c in parameter.when
        )
        if fails:
            dropped.add(parameter.path)
        elif parameter.path in values:
            kept[parameter.path] = values[parameter.path]
        elif isinstance(parameter.distribution, Constant):
            kept[parameter.path] = parameter.distribution.value
    return {path: value for path, value in kept.items() if path in values}


def _near(space: SearchSpace, path: str, wanted: Iterable[Any]) -> Any:
    """The first of `wanted` that the parameter takes, numbers moved into its range; else None."""
    parameter = next((p for p in space.parameters if p.path == path), None)
    if parameter is None:
        return None
    return next((v for v in (_project(parameter.distribution, w) for w in wanted) if v is not None), None)


def _project(distribution: Distribution, value: Any) -> Any:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    match distribution:
        case Constant():
            return distribution.value
        case Categorical():
            if value in distribution.choices:
                return value
            numbers = [
                c for c in distribution.choices if isinstance(c, int | float) and c is not True and c > 0
            ]
            if not numeric or not numbers or value <= 0:
                return None
            return min(numbers, key=lambda c: abs(math.log(c / value)))
        case Uniform() | IntUniform() if numeric:
            return distribution.decode(min(max(value, distribution.low), distribution.high))
        case Normal() if numeric:
            return min(max(value, distribution.low), distribution.high)
        case _:
            return None


def _family(spec: SweepSpec) -> float:
    """The learning rate that is customary for the model's family and size."""
    from training.models import model_directory

    try:
        config = json.loads((Path(model_directory(spec.model, weights=False)) / "config.json").read_text())
    except (ValueError, OSError):  # what is wrong with the model is told where it is loaded
        return _LEARNING_RATE
    width = config.get("hidden_size", config.get("dim", config.get("n_embd")))
    if isinstance(width, int) and width < _SMALL_WIDTH:
        return _SMALL_LEARNING_RATE
    return _LEARNING_RATES.get(str(config.get("model_type")), _LEARNING_RATE)
