"""Results of earlier sweeps as prior knowledge of this one's sampler.

An earlier trial is looked at as what it was trained with, searched or not, so a parameter that was not
searched there has the value that was fixed there, and one that is not searched here counts for nothing. A
trial that this sweep's space could not draw is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search import mirror
from search.problems import SpecError
from search.records import TrialRecord, TrialState
from search.space import SearchSpace, active, contains, encode
from search.spec import SweepSpec

if TYPE_CHECKING:
    from search.sweep import Sweep

_KNOWN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.DIVERGED, TrialState.INFEASIBLE)


@dataclass(frozen=True, kw_only=True)
class Source:
    """An earlier sweep, and what this one takes from it."""

    name: str
    prior: tuple[Mapping[str, Any], ...]
    """What the ledger keeps of each trial: `params` as Optuna stores them, `state`, and by epochs the
    values of the metric."""
    outside: int
    """Trials that this sweep's space could not draw."""


def gather(spec: SweepSpec, storage: Path) -> list[Source]:
    """What the sweeps in `search.warm_start` know. A name is looked up in `storage`.

    Raises:
        SpecError: where one is not there, or was judged by something else.
    """
    found: list[Source] = []
    problems: list[str] = []
    for number, name in enumerate(spec.search.warm_start):
        at = f"search.warm_start[{number}]"
        try:
            sweep = _find(name, storage)
        except ValueError as error:
            problems.append(f"{at}: {error}")
            continue
        ours, theirs = spec.search.metric, sweep.spec.search.metric
        if (ours.name, ours.goal) != (theirs.name, theirs.goal):
            problems.append(
                f"{at}: {name} was judged by {theirs.name} ({theirs.goal}), this sweep is by {ours.name} "
                f"({ours.goal}); give one with the same metric"
            )
            continue
        found.append(_source(spec, sweep))
    if problems:
        raise SpecError(problems)
    return found


def _find(name: str, storage: Path) -> Sweep:
    from search.sweep import find

    if "://" in name:
        place, _, last = name.rstrip("/").rpartition("/")
        return find(last, mirror.open_storage(place))
    path = Path(name).expanduser()
    # A path leads to the directory of one sweep; a bare name is one of this storage.
    return find(path.name, path.parent) if path.name != name else find(name, storage)


def _source(spec: SweepSpec, sweep: Sweep) -> Source:
    from search.sweep import flat_settings

    known = [t for t in sweep.read().trials() if t.state in _KNOWN and t.same_as is None]
    prior = []
    for trial in known:
        values = reconciled(spec.space, flat_settings(sweep.trial_config(trial)))
        if values is not None:
            prior.append(_kept(trial, encode(spec.space, values), [m.name for m in metrics(spec)]))
    return Source(name=sweep.spec.name, prior=tuple(prior), outside=len(known) - len(prior))


def metrics(spec: SweepSpec) -> Sequence[Any]:
    """What trials are compared by."""
    return [spec.search.metric, *spec.search.objectives]


def reconciled(space: SearchSpace, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Those of all settings by path that the space searches, the active ones; None where it could not
    draw them."""
    values: dict[str, Any] = {}
    for parameter in space.parameters:
        if parameter.path not in active(space, {**values, parameter.path: None}):
            continue
        value = settings.get(parameter.path)
        if not contains(parameter.distribution, value):
            return None
        values[parameter.path] = value
    return values


def _kept(trial: TrialRecord, params: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    names = list(names)
    results = [
        {"epochs": result.epochs, "metrics": {n: result.metrics[n] for n in names if n in result.metrics}}
        for result in trial.results
    ]
    return {"params": dict(params), "state": trial.state.value, "results": results}
