"""What commands do to a sweep: each changes its ledger, once, and leaves an answer there."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from search.inbox import Command
from search.life import Life, Wanted
from search.picking import changed, picked
from search.points import stored
from search.records import TrialState
from search.space import SearchSpace
from search.study import Study

_MOST_MORE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Helm:
    """What a command is carried out on."""

    study: Study
    space: SearchSpace
    trials: int
    """How many the sweep file wants."""
    running: Collection[int] = ()
    """Trials that are at work just now."""

    @property
    def target(self) -> int:
        """How many trials the sweep is to have."""
        return self.study.target or self.trials


def obey(helm: Helm, command: Command) -> str:
    """Carry a command out, and enter that; one that was carried out before changes nothing.

    Returns:
        What came of it, in a sentence without a full stop.
    """
    study = helm.study
    with study.writing():
        done = study.outcome(command.id)
        if done is not None:
            return done
        try:
            outcome = _KINDS[command.kind](helm, **command.arguments)
        except (ValueError, TypeError) as error:  # what was right when it was sent need not be now
            outcome = f"refused: {error}"
        study.obeyed(command.id, outcome)
        return outcome


def check(helm: Helm, command: Command) -> None:
    """Check that a command can be carried out as things are.

    Raises:
        ValueError: if not, saying why.
    """
    match command.kind:
        case "enqueue":
            picked(helm.space, command.arguments["values"])
        case "stop-trial":
            _stoppable(helm, command.arguments["trial"])
        case "extend":
            _more(command.arguments["trials"])
        case _:
            pass


def clone_of(helm: Helm, trial: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The values of a trial like `trial`, but for `changes`.

    Raises:
        ValueError: there is no such trial, or the changes do not fit the space.
    """
    return changed(helm.space, helm.study.trial(trial).params, changes)


def _want(wanted: Wanted, said: str) -> Callable[..., str]:
    def obey(helm: Helm, reason: str) -> str:
        helm.study.live(Life(wanted=wanted, reason=str(reason)))
        return said

    return obey


def _extend(helm: Helm, trials: int) -> str:
    target = helm.target + _more(trials)
    helm.study.aim(target)
    return f"the sweep is to have {target} trials now"


def _enqueue(helm: Helm, values: dict[str, Any], note: str) -> str:
    before = helm.study.waiting
    number = helm.study.enqueue(stored(helm.space, picked(helm.space, values)), str(note))
    helm.study.aim(helm.target + 1)
    after = f", after {before} picked before" if before else ""
    return f"trial {number} is next{after}"


def _stop_trial(helm: Helm, trial: int, reason: str) -> str:
    record = helm.study.trial(_stoppable(helm, trial))
    if not record.ending:
        helm.study.rule(trial, "stop", str(reason))
    if trial in helm.running:
        return f"trial {trial} ends at its next evaluation"
    helm.study.tell(trial, TrialState.PRUNED)
    return f"trial {trial} has ended"


def _stoppable(helm: Helm, trial: int) -> int:
    record = helm.study.trial(trial)
    if record.state.finished:
        raise ValueError(f"trial {trial} has ended already: {record.state}")
    return trial


def _more(trials: int) -> int:
    if not isinstance(trials, int) or not 1 <= trials <= _MOST_MORE:
        raise ValueError(f"--trials: must be +N with N from 1 to {_MOST_MORE:,}, got {trials}")
    return trials


_KINDS: dict[str, Callable[..., str]] = {
    "pause": _want(Wanted.PAUSE, "running trials are held at their next evaluation"),
    "stop": _want(Wanted.DRAIN, "no new trial starts; running ones finish"),
    "cancel": _want(Wanted.CANCEL, "the sweep ends at once"),
    "resume": _want(Wanted.RUN, "the sweep goes on"),
    "extend": _extend,
    "enqueue": _enqueue,
    "stop-trial": _stop_trial,
}
