"""How the next trial is found: the points to try first, then the sampler's draws, none of them twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna

from search.config import SamplerConfig
from search.duplicates import plain_identity, repeated
from search.ledger import derived_seed
from search.records import TrialRecord, TrialState
from search.samplers import SpaceExhausted, Suggest, make_sampler
from search.view import View

# Draws that repeat a known trial before the sampler gives way to random ones, and those to a list of what
# the space has left.
_SAMPLED, _RANDOM = 8, 24


def _unlisted(known: Collection[str]) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What decides which trials are drawn, besides the sampler and the ledger."""

    duplicates: Literal["redraw", "reuse", "allow"] = "redraw"
    identity: Callable[[Mapping[str, Any]], str] = plain_identity
    """Equal for parameters that train alike."""
    untried: Callable[[Collection[str]], list[dict[str, Any]] | None] = _unlisted
    """Identities of known trials -> all others that the space has, as Optuna stores them; None where
    they cannot be listed."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A draft that is to be entered in the ledger."""

    params: Mapping[str, Any]
    sampler: optuna.samplers.BaseSampler
    point: int | None = None
    """Which of the points to try first it is."""
    redrawn: int = 0
    """Draws before it that were thrown away, as they repeated a known trial."""
    same_as: TrialRecord | None = None
    """The finished trial whose results are its own."""


def draw(
    view: View,
    suggest: Suggest,
    *,
    drawing: Drawing,
    config: SamplerConfig,
    seed: int,
    number: int,
    points: Sequence[Mapping[str, Any]],
    trials: Sequence[TrialRecord],
    known: Mapping[int, str],
) -> Drawn:
    """Draw trial `number` as the draft of `view`: a function of the arguments alone.

    Args:
        points: what is still to be tried before the sampler draws, as Optuna stores it.
        trials: of the ledger.
        known: their identities by number.

    Raises:
        SpaceExhausted: there is nothing else to draw.
    """

    def drafted(sampler: optuna.samplers.BaseSampler, fixed: Mapping[str, Any]) -> Mapping[str, Any]:
        return plain_values(suggest(view.draw(sampler, fixed)))

    def repeats(params: Mapping[str, Any]) -> TrialRecord | None:
        if drawing.duplicates == "allow":
            return None
        return repeated(trials, known, drawing.identity(params))

    for at, point in enumerate(points):
        sampler = make_sampler(config, derived_seed(seed, number, "sampler"), suggest)
        params = drafted(sampler, point)
        if repeats(params) is None:
            return Drawn(params=params, sampler=sampler, point=at)
    redrawn = 0
    for sampler in _samplers(config, seed, number, suggest):
        params = drafted(sampler, {})
        same = repeats(params)
        if same is None:
            return Drawn(params=params, sampler=sampler, redrawn=redrawn)
        if drawing.duplicates == "reuse" and same.state.finished:
            return Drawn(params=params, sampler=sampler, redrawn=redrawn, same_as=same)
        redrawn += 1
    left = drawing.untried({known[t.number] for t in trials if t.state is not TrialState.FAILED})
    if left is None:  # a few points are nearly all that is ever drawn: so be it
        return Drawn(params=params, sampler=sampler, redrawn=redrawn)
    if not left:
        raise SpaceExhausted
    chosen = left[derived_seed(seed, number, "untried") % len(left)]
    return Drawn(params=drafted(sampler, chosen), sampler=sampler, redrawn=redrawn)


def _samplers(
    config: SamplerConfig, seed: int, number: int, suggest: Suggest
) -> Iterator[optuna.samplers.BaseSampler]:
    """One for each attempt, each with a seed of its own."""
    yield make_sampler(config, derived_seed(seed, number, "sampler"), suggest)
    for attempt in range(1, _SAMPLED):
        yield make_sampler(config, derived_seed(seed, number, f"sampler {attempt}"), suggest)
    for attempt in range(_RANDOM):
        yield optuna.samplers.RandomSampler(seed=derived_seed(seed, number, f"random {attempt}"))


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without NumPy's scalar types, for JSON."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
