"""What a tracker is: one writer in the driver that every result streams through.

A tracker sees runs start, metrics arrive and runs end, and shows them somewhere: a file,
Weights & Biases. It is a view; the study is the ledger. So a tracker may be slow, broken or
absent without harm: its methods return at once, and `Composite` drops one that raises.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

from annotated_types import MinLen

Value = float | int | str | bool | None
"""One metric: a number, or a short word such as which blocks are thawed."""

# Read by pydantic where a sweep file is validated; unknown keys are errors there.
_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases: one run a trial, grouped by sweep."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    project: Annotated[str, MinLen(1)] = "thaw"
    """The project that the runs go to."""
    entity: str | None = None
    """The user or team that owns the project; the login's default where unset."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online where a W&B key is found, else offline."""
    tags: list[str] = field(default_factory=list)
    """Tags of every run."""
    api_key_file: str | None = None
    """A file that holds the key, read where the driver runs, such as a mounted Kubernetes secret. Where
    unset, the key is WANDB_API_KEY or what `wandb login` left."""


@dataclass(frozen=True, kw_only=True)
class JsonlConfig:
    """`metrics.jsonl` in the sweep's directory."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trial as the trackers see it."""

    sweep: str
    """The sweep's name; runs of one sweep are shown together."""
    sweep_id: str
    """Tells apart two sweeps of one name. Stable for the life of the sweep's directory."""
    trial: int
    """The trial's number in the sweep."""
    directory: Path
    """A local directory of the sweep; trackers write below it and nowhere else."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters, and what else the results depend on: model, data, seed, versions, commit."""
    resumed: bool = False
    """Whether the trial goes on where an earlier driver, or an earlier call of `finish`, left it."""

    @property
    def name(self) -> str:
        """The name to show, such as `quickstart-3`."""
        return f"{self.sweep}-{self.trial}"

    @property
    def id(self) -> str:
        """Identifies the run for good: letters, digits, `-` and `_`, at most 64 of them."""
        digest = hashlib.sha256(f"{self.sweep}\0{self.sweep_id}".encode()).hexdigest()[:10]
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', self.sweep)[:40]}-{digest}-{self.trial}"


@runtime_checkable
class Tracker(Protocol):
    """Where results are shown. No method blocks, save `close`; calls come from one thread."""

    def start(self, run: Run) -> None:
        """Opens the run of a trial; with `run.resumed`, goes on with the one that exists."""

    def log(self, trial: int, metrics: Mapping[str, Value], *, examples: int) -> None:
        """Adds metrics taken after `examples` training examples.

        What a resumed run had logged up to there already is left out, metric by metric, since
        a trial that goes back to its checkpoint reports some steps a second time.
        """

    def summarize(self, trial: int, values: Mapping[str, Value]) -> None:
        """Sets values that stand for the whole run, such as its best."""

    def finish(self, trial: int, state: str) -> None:
        """Ends the run of a trial; `state` is a `TrialState`. It may be started again, resumed."""

    def close(self, timeout_s: float) -> None:
        """Ends what is open and gives up on what is not done after about `timeout_s` seconds."""

    def locations(self) -> list[str]:
        """Where to look: URLs and paths, for people."""

    @property
    def warnings(self) -> Sequence[str]:
        """What went wrong so far, one readable line each; nothing is printed."""


class NoTracker:
    """Tracks nothing."""

    warnings: Sequence[str] = ()

    def start(self, run: Run) -> None:
        """Does nothing."""

    def log(self, trial: int, metrics: Mapping[str, Value], *, examples: int) -> None:
        """Does nothing."""

    def summarize(self, trial: int, values: Mapping[str, Value]) -> None:
        """Does nothing."""

    def finish(self, trial: int, state: str) -> None:
        """Does nothing."""

    def close(self, timeout_s: float) -> None:
        """Does nothing."""

    def locations(self) -> list[str]:
        """Nowhere."""
        return []


class Composite:
    """Several trackers as one. One that raises is dropped, with a warning: a view must not end a sweep."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._all = list(trackers)
        self._working = list(self._all)
        self._warnings: list[str] = []

    def start(self, run: Run) -> None:
        """See `Tracker`."""
        self._each("start", run)

    def log(self, trial: int, metrics: Mapping[str, Value], *, examples: int) -> None:
        """See `Tracker`."""
        self._each("log", trial, metrics, examples=examples)

    def summarize(self, trial: int, values: Mapping[str, Value]) -> None:
        """See `Tracker`."""
        self._each("summarize", trial, values)

    def finish(self, trial: int, state: str) -> None:
        """See `Tracker`."""
        self._each("finish", trial, state)

    def close(self, timeout_s: float) -> None:
        """See `Tracker`. Also closes the trackers that were dropped."""
        self._working = list(self._all)
        self._each("close", timeout_s)

    def locations(self) -> list[str]:
        """See `Tracker`."""
        return [location for tracker in self._all for location in tracker.locations()]

    @property
    def warnings(self) -> Sequence[str]:
        """See `Tracker`."""
        return [*self._warnings, *(warning for tracker in self._all for warning in tracker.warnings)]

    def _each(self, method: str, *args: Any, **kwargs: Any) -> None:
        for tracker in list(self._working):
            try:
                getattr(tracker, method)(*args, **kwargs)
            except Exception as error:
                self._working.remove(tracker)
                self._warnings.append(
                    f"{type(tracker).__name__} is out of use: {method} failed with "
                    f"{type(error).__name__}: {error}"
                )


class Seen:
    """How far each metric of a run has been logged, in training examples."""

    def __init__(self, last: Mapping[str, int] | None = None) -> None:
        self.last: dict[str, int] = dict(last or {})

    def new(self, metrics: Mapping[str, Any], examples: int) -> dict[str, Any]:
        """The metrics not yet logged up to `examples`, which then count as logged."""
        fresh = {name: value for name, value in metrics.items() if examples > self.last.get(name, -1)}
        self.last.update(dict.fromkeys(fresh, examples))
        return fresh


def jsonable(value: Any, *, words: bool = True) -> Any:
    """The same in JSON's types: NumPy and torch scalars become numbers, other things their `str`.

    With `words`, numbers that are not finite become "NaN", "Infinity" and "-Infinity", since
    strict JSON has no numbers for them.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value) or not words:
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): jsonable(item, words=words) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item, words=words) for item in value]
    if callable(item := getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        return jsonable(item(), words=words)
    return str(value)


def dumps(value: Any) -> str:
    """One line of strict JSON."""
    return json.dumps(jsonable(value), allow_nan=False, ensure_ascii=False)
