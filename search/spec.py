"""The sweep file's contract: `SweepSpec`. The only pydantic in Thaw.

`loading.py` reads files into it. The rest of the code takes its sections, which are frozen dataclasses,
and `SweepSpec.space`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from search.config import CheckpointsConfig, ResourcesConfig, SearchConfig, TrackingConfig
from search.parameters import Leaf, build, to_block
from search.problems import SpecError, bare, clean, dotted, explain, kinds, plain, settings
from search.rules import broken
from search.space import SearchSpace
from training.config import DataConfig, ModelConfig, TaskConfig, TrainingConfig, TrialConfig

# Where the paths of `parameters` lead: into `training` as they are, into these with their name.
_SEARCHED: dict[str, type] = {"training": TrainingConfig, "task": TaskConfig, "model": ModelConfig}
_SHORT = ("sampler", "scheduler")


class ParameterSpec(BaseModel):
    """What one setting may be: `value`, `values`, or a distribution; the shape of W&B sweeps."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    distribution: (
        Literal[
            "constant",
            "categorical",
            "categorical_w_probabilities",
            "uniform",
            "int_uniform",
            "q_uniform",
            "log_uniform_values",
            "q_log_uniform_values",
            "normal",
        ]
        | None
    ) = None
    """How values are drawn. Inferred where unset: `min` and `max` are int_uniform if both are
    integers, else uniform."""
    value: Any = None
    """The only value."""
    values: list[Any] | None = None
    """The values to choose from."""
    probabilities: list[float] | None = None
    """How likely each of `values` is; they add up to 1."""
    min: int | float | None = None
    """Smallest value."""
    max: int | float | None = None
    """Largest value."""
    q: int | float | None = None
    """Values are multiples of this (q_uniform, q_log_uniform_values)."""
    mu: float | None = None
    """Mean (normal)."""
    sigma: float | None = None
    """Standard deviation (normal)."""
    when: dict[str, Any] | None = None
    """Active only where these other parameters have this value, or one of this list of values."""

    def given(self) -> dict[str, Any]:
        """The keys that were given; null counts as not given, except as `value`."""
        names = [n for n in type(self).model_fields if n in self.model_fields_set]
        return {n: getattr(self, n) for n in names if n == "value" or getattr(self, n) is not None}


class SweepSpec(BaseModel):
    """A sweep: what is trained, what is searched, on what, and what is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
    """Results go to STORAGE/NAME/: letters, digits, `.`, `_` and `-`, at most 64."""
    model: ModelConfig
    """The pretrained model that every trial starts from."""
    task: TaskConfig = TaskConfig()
    """What is learned, and from which columns."""
    data: DataConfig
    """Where the examples are."""
    training: TrainingConfig = TrainingConfig()
    """How every trial trains, save what `parameters` searches."""
    parameters: Annotated[dict[str, ParameterSpec], Field(min_length=1)]
    """What is searched: dotted path of a setting -> what it may be."""
    search: SearchConfig
    """What is tried next, and for how long."""
    resources: ResourcesConfig = ResourcesConfig()
    """What one trial takes, and how many run at once."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    """What is kept on disk."""
    tracking: TrackingConfig = TrackingConfig()
    """Where results are streamed to."""

    @field_validator("parameters")
    @classmethod
    def _canonical(cls, parameters: dict[str, ParameterSpec]) -> dict[str, ParameterSpec]:
        space, problems = build({path: p.given() for path, p in parameters.items()}, LEAVES)
        if problems:
            raise ValueError("\n".join(problems))
        return {path: ParameterSpec(**keys) for path, keys in to_block(space).items()}

    @cached_property
    def space(self) -> SearchSpace:
        """The search space of `parameters`."""
        space, problems = build({path: p.given() for path, p in self.parameters.items()}, LEAVES)
        assert not problems, problems
        return space


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _leaf(path: str, annotation: Any, description: str) -> Leaf:
    def check(value: Any) -> tuple[Any, str | None]:
        unknown: list[str] = []
        cleaned = clean(annotation, value, (), unknown)
        try:
            good = _adapter(annotation).validate_python(cleaned)
        except ValidationError as error:
            unknown += explain(error.errors(include_url=False), annotation)
        if unknown:
            return value, unknown[0].removeprefix("the sweep file: ")
        return _adapter(annotation).dump_python(good, mode="json"), None

    return Leaf(path=path, annotation=annotation, description=description, check=check)


def _leaves(section: type, prefix: str) -> dict[str, Leaf]:
    found: dict[str, Leaf] = {}
    properties = _described(section)
    for name, annotation in (settings(section) or {}).items():
        if is_dataclass(bare(annotation)):
            found |= _leaves(bare(annotation), f"{prefix}{name}.")
        else:
            found[prefix + name] = _leaf(prefix + name, annotation, properties[name])
    return found


def _described(section: type) -> dict[str, str]:
    schema = TypeAdapter(section).json_schema()
    return {n: str(p.get("description", "")) for n, p in schema["properties"].items()}


LEAVES: dict[str, Leaf] = {
    path: leaf
    for section, kind in _SEARCHED.items()
    for path, leaf in _leaves(kind, "" if section == "training" else f"{section}.").items()
}
"""Every path that `parameters` may have -> its setting."""


def parse(raw: Mapping[str, Any]) -> SweepSpec:
    """The spec of a sweep file that has been read into plain values.

    Raises:
        SpecError: With every problem there is.
    """
    problems: list[str] = []
    cleaned = clean(SweepSpec, normal_form(plain(raw), problems), (), problems)
    parameters = cleaned.get("parameters")
    one_by_one = isinstance(parameters, Mapping) and bool(parameters)
    if one_by_one:
        problems += _parameter_problems(parameters)
    try:
        spec = SweepSpec.model_validate(cleaned)
    except ValidationError as error:
        records = error.errors(include_url=False)
        problems += explain(
            [e for e in records if not (one_by_one and e["loc"][0] == "parameters")], SweepSpec
        )
    else:
        problems += broken(spec.space, spec.search, spec.resources)
    if problems:
        order = {name: i for i, name in enumerate(SweepSpec.model_fields)}
        problems.sort(key=lambda line: order.get(re.split(r"[.:\[]", line, maxsplit=1)[0], -1))
        raise SpecError(problems)
    return spec


def _parameter_problems(raw: Mapping[str, Any]) -> list[str]:
    """Of each parameter, so that one of the wrong shape does not keep the others from being looked at."""
    problems: list[str] = []
    block: dict[str, dict[str, Any] | None] = {}
    for path, keys in raw.items():
        try:
            block[path] = ParameterSpec.model_validate(keys).given()
        except ValidationError as error:
            block[path] = None
            problems += explain(error.errors(include_url=False), ParameterSpec, ("parameters", path))
    return problems + build(block, LEAVES)[1]


def normal_form(raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """A copy with short forms written out and nested `parameters:` flattened to dotted paths."""
    full = dict(raw)
    if isinstance(search := full.get("search"), Mapping):
        full["search"] = dict(search)
        for key in _SHORT:
            if isinstance(name := search.get(key), str):
                full["search"][key] = {"type": name}
    if isinstance(resources := full.get("resources"), Mapping) and "prefix_store" in resources:
        store = resources["prefix_store"]
        short = {False: "recompute", "off": "recompute", True: "store", "on": "store", "auto": "store"}
        if isinstance(store, str | bool):  # YAML reads `off` as false
            full["resources"] = {**resources, "prefix_store": {"mode": short.get(store, store)}}
    if isinstance(parameters := full.get("parameters"), Mapping):
        flat: dict[Any, Any] = {}
        full["parameters"] = flat
        _flatten(parameters, "", flat, problems)
    return full


def _flatten(parameters: Mapping[Any, Any], prefix: str, flat: dict[Any, Any], problems: list[str]) -> None:
    for name, keys in parameters.items():
        path = f"{prefix}{name}" if isinstance(name, str) else name
        nested = keys.get("parameters") if isinstance(keys, Mapping) and len(keys) == 1 else None
        if isinstance(path, str) and isinstance(nested, Mapping):
            _flatten(nested, f"{path}.", flat, problems)
        elif path in flat:
            problems.append(f"{dotted(('parameters', path))}: is there twice, nested and dotted; remove one")
        else:
            flat[path] = keys


def trial_settings(spec: SweepSpec, values: Mapping[str, Any], seed: int) -> TrialConfig:
    """One trial's settings: the sections of the spec with `values` (path -> value) laid over them.

    Raises:
        ValueError: Where a path or a value is not right.
    """
    sections: dict[str, Any] = {
        name: _adapter(kind).dump_python(getattr(spec, name)) for name, kind in _SEARCHED.items()
    }
    problems: list[str] = []
    for path, value in values.items():
        if path not in LEAVES:
            problems.append(f"{path}: unknown parameter")
            continue
        checked, complaint = LEAVES[path].check(value)
        if complaint:
            problems.append(f"{path}: {complaint}")
        *outer, last = path.split(".")
        place = sections if outer[:1] in (["task"], ["model"]) else sections["training"]
        for part in outer:
            place = place[part]
        place[last] = checked
    if problems:
        raise SpecError(problems)
    if any(objective.name == "cost/latency" for objective in spec.search.objectives):
        sections["training"]["measure_latency"] = True
    made = {name: _adapter(kind).validate_python(sections[name]) for name, kind in _SEARCHED.items()}
    return TrialConfig(**made, data=spec.data, seed=seed)


def as_mapping(spec: SweepSpec) -> dict[str, Any]:
    """A spec as plain values, in the shape of a sweep file, without what is null by default."""
    whole = spec.model_dump(mode="json", exclude={"parameters"})
    parameters = {path: p.given() for path, p in spec.parameters.items()}
    made = {}
    for name, annotation in (settings(SweepSpec) or {}).items():
        made[name] = parameters if name == "parameters" else _without_nulls(annotation, whole[name])
    return made


def _without_nulls(annotation: Any, value: Any) -> Any:
    section: Any = next((k for k in kinds(annotation) if is_dataclass(k)), None)
    if section is None or not isinstance(value, dict):
        return value
    defaults = {f.name: f.default for f in fields(section)}
    types = settings(section) or {}
    return {
        n: _without_nulls(types[n], v) for n, v in value.items() if not (v is None and defaults[n] is None)
    }
