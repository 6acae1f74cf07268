"""Reading sweep files: YAML and `--set` in, `SweepSpec` or all problems at once out."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from search.problems import SpecError, dotted, hint, inside, kinds, nearest, plain, settings, show
from search.spec import LEAVES, ParameterSpec, SweepSpec, as_mapping, normal_form, parse

_MAX_BYTES = 1_000_000
_MAX_KEYS = 10_000


class _Loader(yaml.SafeLoader):
    """Safe YAML without dates (a revision may look like one) and without repeated keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the base class's own shape)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_KEYS:  # `<<` of `<<` of ... doubles each time
            raise yaml.constructor.ConstructorError(
                None, None, f"a mapping must have at most {_MAX_KEYS} keys", node.start_mark
            )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {show(key.value)} is there twice; remove one", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def names() -> list[str]:
    """The bundled sweeps."""
    return sorted(p.stem for p in _bundled().iterdir() if p.suffix == ".yaml")


def _bundled() -> Path:
    return Path(str(importlib.resources.files("search"))) / "sweeps"


def load(source: str, overrides: Sequence[str] = ()) -> SweepSpec:
    """The spec of a sweep file, given by its path or by the name of a bundled one.

    Data paths are looked up next to the file first, then in the working directory, and made
    absolute where they are found.

    Args:
        overrides: `PATH=VALUE` each, the value in YAML; a later one wins.

    Raises:
        SpecError: With everything that is wrong, one line each.
    """
    path = _locate(source)
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MAX_BYTES else b""
    except OSError as error:
        raise SpecError([f"{source}: cannot be read: {error.strerror}"]) from None
    if size > _MAX_BYTES:
        raise SpecError(
            [f"{source}: must be at most {_MAX_BYTES:,} bytes, got {size:,}: is it a sweep file?"]
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError([f"{source}: must be UTF-8 text, got byte {data[error.start]:#04x}"]) from None
    return loads(text, overrides, source=source, directory=path.parent)


def loads(
    text: str, overrides: Sequence[str] = (), *, source: str = "sweep file", directory: Path | None = None
) -> SweepSpec:
    """As `load`, from the text of a file that is said to be `source` in `directory`.

    Without a directory, data paths stay as they are.

    Raises:
        SpecError: With everything that is wrong, one line each.
    """
    if len(text) > _MAX_BYTES:
        raise SpecError([f"{source}: must be at most {_MAX_BYTES:,} bytes, got {len(text):,}"])
    raw = _yaml(text, source)
    if not isinstance(raw, Mapping):
        got = "nothing" if raw is None else show(raw)
        raise SpecError(
            [f"{source}: must be a mapping with keys {', '.join(settings(SweepSpec) or ())}, got {got}"]
        )
    raw, problems = _overridden(plain(raw), overrides)
    try:
        spec = parse(raw)
    except SpecError as error:
        raise SpecError([*problems, *error.problems]) from None
    if problems:
        raise SpecError(problems)
    return spec if directory is None else _found(spec, directory)


def _locate(source: str) -> Path:
    path = Path(source)
    if source in names():
        return _bundled() / f"{source}.yaml"
    if path.is_dir():
        raise SpecError([f"{source}: must be a YAML file, got a directory"])
    if path.exists():
        return path
    near = nearest(source, names())
    meant = f"did you mean {near}?" if near else f"bundled sweeps: {', '.join(names())}"
    raise SpecError([f"{source}: no such file or bundled sweep; {meant}"])


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise SpecError([f"{where}: {error.problem or error.context}"]) from None
    except yaml.reader.ReaderError as error:
        raise SpecError([f"{source}: character {error.position + 1} is not allowed in YAML"]) from None
    except RecursionError:
        raise SpecError([f"{source}: nested too deep"]) from None
    except (ValueError, yaml.YAMLError) as error:  # such as a number of 5,000 digits
        raise SpecError([f"{source}: {str(error).splitlines()[0]}"]) from None


def _overridden(raw: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A copy with overrides laid over, and what is wrong with them."""
    problems: list[str] = []
    if not overrides:
        return dict(raw), problems
    full = normal_form(raw, problems)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            problems.append(f"--set {override}: must be PATH=VALUE, such as search.trials=4")
            continue
        try:
            _set(full, path.strip(), scalar(text))
            full = normal_form(full, problems)
        except SpecError as error:
            problems.extend(f"--set {override}: {line}" for line in error.problems)
    return full, problems


def scalar(text: str) -> Any:
    """One value as a command line gives it: YAML, in plain types.

    Raises:
        SpecError: it is no YAML.
    """
    return plain(_yaml(text, "value"))


def _set(full: dict[str, Any], path: str, value: Any) -> None:
    """Sets one path of a sweep file in place; containers on the way are copied or made."""
    first, _, rest = path.partition(".")
    if first == "parameters" and rest:
        parts: list[str] = ["parameters", *_parameter_parts(full, rest)]
    else:
        parts = path.split(".")
    reached: Any = SweepSpec
    for i, part in enumerate(parts):
        deeper = inside(reached, part)
        if deeper is None:
            known = [".".join([*parts[:i], name]) for k in (reached,) for name in _known(k)]
            raise SpecError([f"unknown key{hint('.'.join(parts[: i + 1]), known)}"])
        reached = deeper
    place = full
    for i, part in enumerate(parts[:-1]):
        inner = place.get(part)
        if inner is not None and not isinstance(inner, Mapping):
            raise SpecError([f"{dotted(parts[: i + 1])} must be a mapping, got {show(inner)}"])
        place[part] = dict(inner or {})
        place = place[part]
    place[parts[-1]] = value


def _known(annotation: Any) -> list[str]:
    return [name for kind in kinds(annotation) for name in settings(kind) or ()]


def _parameter_parts(full: Mapping[str, Any], rest: str) -> list[str]:
    """`unfreezing.depth.max` as `["unfreezing.depth", "max"]`: the keys of `parameters` hold dots."""
    present = full.get("parameters")
    paths = {*LEAVES, *(str(p) for p in (present if isinstance(present, Mapping) else ()))}
    fits = [p for p in paths if rest == p or rest.startswith(f"{p}.")]
    if not fits:
        keys = settings(ParameterSpec) or {}
        path, _, last = rest.rpartition(".")
        raise SpecError([f"unknown key{hint(path if last in keys else rest, LEAVES)}"])
    path = max(fits, key=len)
    if rest == path:
        return [path]
    key, _, inner = rest[len(path) + 1 :].partition(".")
    return [path, key, inner] if inner else [path, key]


def _found(spec: SweepSpec, directory: Path) -> SweepSpec:
    """The spec with absolute data paths, where there is such a file."""

    def find(path: str | None) -> str | None:
        if not path or "://" in path or Path(path).is_absolute():
            return path
        for candidate in (directory / path, Path(path)):
            try:
                if candidate.exists():
                    return str(candidate.resolve())
            except OSError:  # a name that is too long, and such
                pass
        return path

    data = spec.data
    if data.name is not None:  # then the others name splits of it
        data = replace(data, name=find(data.name))
    else:
        train, validation = find(data.train), find(data.validation)
        assert train
        assert validation
        data = replace(data, train=train, validation=validation, test=find(data.test))
    return spec.model_copy(update={"data": data})


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Only double quotes keep line breaks of every kind.
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def to_yaml(spec: SweepSpec) -> str:
    """The one canonical text of a spec: every setting, also where it is the default. Reads back equal."""
    return yaml.dump(as_mapping(spec), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def differences(old: SweepSpec, new: SweepSpec) -> list[str]:
    """What changed from one spec to another, one line each: `search.trials: 12 -> 16`."""
    before, after = dict(_settings(as_mapping(old), ())), dict(_settings(as_mapping(new), ()))
    return [
        f"{dotted(at)}: {show(before[at]) if at in before else 'unset'} -> "
        f"{show(after[at]) if at in after else 'unset'}"
        for at in [*before, *(at for at in after if at not in before)]
        if before.get(at) != after.get(at) or (at in before) != (at in after)
    ]


def _settings(value: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _settings(inner, (*at, key))
    else:
        yield at, value
