"""Saying what is wrong with a sweep file: where, what came, and what would be right.

Works on annotations and on pydantic's error records, and knows no particular setting.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

Place = tuple[str | int, ...]

_BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
_EMPTY = {"too_short", "string_too_short"}
_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    types.NoneType: "null",
}
_MAX_INTEGER = 2**63
_LONG = 80  # characters of a value that a message shows
_MAX_VALUES, _MAX_DEPTH = 100_000, 32
_MAX_TEXT = 10_000
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# What users of other tools tend to write.
_HABITS = {
    "lr": "learning_rate",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "lr_scheduler_type": "lr_schedule",
    "max_seq_length": "task.max_length",
}


class SpecError(ValueError):
    """A sweep file that cannot be run. The message has one line for each of `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclasses.dataclass(frozen=True)
class Refused:
    """Stands for a value that pydantic would take and a sweep file must not hold."""

    value: object


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that was probably meant; a dotted one also by its last part."""
    names = list(known)
    text = str(name).lower()[:_LONG]
    if _HABITS.get(text) in names:
        return _HABITS[text]
    ends = {full.rsplit(".", 1)[-1]: full for full in reversed(names)}
    for options, asked, enough in ((names, text, 0.6), (list(ends), text.rsplit(".", 1)[-1], 0.75)):
        close = difflib.get_close_matches(asked, options, n=5, cutoff=enough)
        if close:
            best = max(close, key=lambda option: _likeness(asked, option))
            return best if best in names else ends[best]
    return None


def _likeness(text: str, option: str) -> float:
    """People get the beginning of a word right more often than its end."""
    same = next((i for i, (a, b) in enumerate(zip(text, option, strict=False)) if a != b), len(text))
    return difflib.SequenceMatcher(None, text, option).ratio() + 0.2 * same / max(len(text), 1)


def hint(name: object, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or a list of what is known where nothing is near."""
    names = list(known)
    if near := nearest(name, names):
        return f"; did you mean {key(near)}?"
    shown = ", ".join(key(n) for n in names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; known: {shown}" if names else ""


def show(value: object) -> str:
    """A value as a sweep file would write it, on one short line."""
    if isinstance(value, Refused):
        value = value.value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        return "a number of more than 64 bits"
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(show(v) for v in value[:20]) + "]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key(k)}: {show(v)}" for k, v in list(value.items())[:20]) + "}"
    else:
        text = repr(value)
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


def key(name: object) -> str:
    """A key as it is written, or its representation where that would not print."""
    return (
        name if isinstance(name, str) and name and name.isprintable() and len(name) <= _LONG else show(name)
    )


def dotted(place: Iterable[object]) -> str:
    """`("data", "points", 0)` as `data.points[0]`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{key(part)}"
    return text.lstrip(".") or "the sweep file"


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type, each with its bounds: `Annotated[int, Ge(1)] | None` has two."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for a in get_args(annotation) for m in members(a))
    return (annotation,)


def bare(annotation: Any) -> Any:
    """A type without its bounds."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type without bounds; for a `Literal`, also the types of its values."""
    found: list[Any] = []
    for member in members(annotation):
        inner = bare(member)
        found.extend(kinds(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,))
        if get_origin(inner) is Literal:
            found.extend(type(v) for v in get_args(inner))
    return tuple(found)


@cache
def settings(section: Any) -> Mapping[str, Any] | None:
    """Names and types of the settings of a dataclass or pydantic model; None for other types."""
    if not isinstance(section, type):
        return None
    if dataclasses.is_dataclass(section):
        names = [f.name for f in dataclasses.fields(section)]
    elif hasattr(section, "model_fields"):
        names = list(section.model_fields)
    else:
        return None
    hints = get_type_hints(section, include_extras=True)
    return {name: hints[name] for name in names}


def inside(annotation: Any, part: object) -> Any | None:
    """The type of one setting, list item or mapping value of a type; None where it has no such."""
    for kind in kinds(annotation):
        if isinstance(part, str) and (fields := settings(kind)) is not None and part in fields:
            return fields[part]
        if get_origin(kind) is list and isinstance(part, int):
            return get_args(kind)[0]
        if get_origin(kind) is tuple and isinstance(part, int):
            return get_args(kind)[0]
        if get_origin(kind) is dict and isinstance(part, str):
            return get_args(kind)[1]
    return None


def describe(annotation: Any) -> str:
    """What a setting takes, in words: `a whole number >= 1, or auto`."""
    words = []
    for member in members(annotation):
        inner = bare(member)
        if member is int and float in members(annotation):
            continue
        bounds = get_args(member)[1:] if get_origin(member) is Annotated else ()
        if get_origin(inner) is Literal:
            choices = [str(v) for v in get_args(inner)]
            words.append(choices[0] if len(choices) == 1 else "one of " + ", ".join(choices))
        elif (fields := settings(inner)) is not None:
            words.append("a mapping of " + ", ".join(fields))
        elif get_origin(inner) in (list, tuple):
            words.append("a list")
        elif get_origin(inner) is dict:
            words.append("a mapping")
        else:
            words.append(_NAMES.get(inner, "a value") + _bounds(bounds))
    return ", or ".join(words)


def _bounds(metadata: Iterable[Any]) -> str:
    limits = []
    for bound in metadata:
        for law, sign, name in ((Gt, ">", "gt"), (Ge, ">=", "ge"), (Lt, "<", "lt"), (Le, "<=", "le")):
            if isinstance(bound, law):
                limits.append(f"{sign} {show(getattr(bound, name))}")
    return (" " + " and ".join(limits)) if limits else ""


def plain(value: Any) -> Any:
    """A copy of what was read from a file, as plain lists, mappings and scalars.

    Raises:
        SpecError: Where it is too large or too deep (YAML aliases can make it so, or even endless), or
            holds anything else.
    """
    left = _MAX_VALUES

    def copy(value: Any, place: Place) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise SpecError(
                [f"the sweep file: must hold at most {_MAX_VALUES} values; aliases count in full"]
            )
        if len(place) > _MAX_DEPTH:
            raise SpecError([f"{dotted(place[:4])}: must be nested at most {_MAX_DEPTH} deep"])
        if isinstance(value, Mapping):
            return {k: copy(v, (*place, k if isinstance(k, str) else show(k))) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [copy(v, (*place, i)) for i, v in enumerate(value)]
        if isinstance(value, str):
            return text(value, place)
        if value is None or isinstance(value, bool | int | float):
            return value
        raise SpecError([f"{dotted(place)}: must be text, a number, a list or a mapping, got {show(value)}"])

    return copy(value, ())


def text(value: str, place: Place) -> str:
    """`value`, where it can be meant: it goes into paths, messages and terminals.

    Raises:
        SpecError: Where it is too long, or has control characters or ones that turn the direction of text.
    """
    if len(value) > _MAX_TEXT:
        raise SpecError([f"{dotted(place)}: must be at most {_MAX_TEXT:,} characters, got {len(value):,}"])
    for character in value:
        if unicodedata.category(character) == "Cc" or character in _TURNING:
            raise SpecError([f"{dotted(place)}: must not have control characters in it, got {show(value)}"])
    return value


def clean(annotation: Any, value: Any, place: Place, problems: list[str]) -> Any:
    """A copy of raw input without unknown keys, which are reported, and with what pydantic
    would wrongly take replaced by `Refused`: booleans as numbers, NaN, infinity, huge integers."""
    allowed = kinds(annotation)
    if isinstance(value, Mapping):
        section = next((k for k in allowed if settings(k) is not None), None)
        if section is None and not any(get_origin(k) is dict for k in allowed):
            return {k: clean(Any, v, (*place, key(k)), problems) for k, v in value.items()}
        known = None if section is None else settings(section) or {}
        kept = {}
        for name, inner in value.items():
            if not isinstance(name, str):
                problems.append(
                    f"{dotted((*place, key(name)))}: a key must be text, got {show(name)}; quote it"
                )
            elif known is not None and name not in known:
                problems.append(f"{dotted((*place, name))}: unknown key{hint(name, known)}")
            else:
                kept[name] = clean(inside(annotation, name), inner, (*place, name), problems)
        return kept
    if isinstance(value, list | tuple):
        item = inside(annotation, 0)
        return [clean(Any if item is None else item, v, (*place, i), problems) for i, v in enumerate(value)]
    number = int in allowed or float in allowed
    if isinstance(value, bool):
        return value if bool in allowed or Any in allowed else Refused(value)
    if isinstance(value, int):
        return value if abs(value) < _MAX_INTEGER else Refused(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else Refused(value)
    if isinstance(value, str) and number and str not in allowed and not _finite(value):
        return Refused(value)
    return value


def _finite(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and len(text) < 40
    except ValueError:
        return True  # not a number at all: the type's own error says so


def explain(errors: Iterable[Mapping[str, Any]], annotation: Any, place: Place = ()) -> list[str]:
    """pydantic's error records (`ValidationError.errors()`) as lines; alternatives are taken together."""
    groups: dict[Place, list[Mapping[str, Any]]] = {}
    types_at: dict[Place, Any] = {}
    for error in errors:
        reached, at = annotation, place
        for part in error["loc"]:
            deeper = inside(reached, part)
            if deeper is None:
                break
            reached, at = deeper, (*at, part)
        groups.setdefault(at, []).append(error)
        types_at[at] = reached
    return [f"{dotted(at)}: {_sentence(group, types_at[at])}" for at, group in groups.items()]


def _sentence(group: Sequence[Mapping[str, Any]], annotation: Any) -> str:
    error = group[0]
    kind, got = error["type"], error["input"]
    if kind == "missing":
        return f"required; it takes {describe(annotation)}"
    if kind in _EMPTY:
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return (
            "must be 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter, digit or '_', "
            f"got {show(got)}"
        )
    if len(group) == 1 and kind in _BOUNDS:
        (bound,) = error["ctx"].values()
        whole = isinstance(bound, float) and bound.is_integer()
        return f"must be {_BOUNDS[kind]} {int(bound) if whole else show(bound)}, got {show(got)}"
    text = f"must be {describe(annotation)}, got {show(got)}"
    choices = [str(v) for k in kinds(annotation) if get_origin(k) is Literal for v in get_args(k)]
    if isinstance(got, str) and (near := nearest(got, choices)):
        return f"{text}; did you mean {near}?"
    if kind == "string_type" and not isinstance(got, list | Mapping | types.NoneType):
        return f"{text}; quote it"
    return text
