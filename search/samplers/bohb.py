"""The sampler of BOHB (Falkner et al. 2018, arXiv:1807.01774): TPE fitted where enough trials got to."""

from __future__ import annotations

from collections import Counter

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search.config import SamplerConfig
from search.samplers.cube import Suggest
from search.samplers.seen import retold
from search.samplers.tpe import parzen

# Of trials without an evaluation: infeasible, known from elsewhere, and just begun.
_KEPT = (OptunaState.PRUNED, OptunaState.COMPLETE, OptunaState.RUNNING)


def bohb(config: SamplerConfig, seed: int, suggest: Suggest) -> optuna.samplers.BaseSampler:
    """TPE on the values at the farthest evaluation that at least d + 3 trials have reached.

    d is the number of parameters; the paper asks for d + 1 and two more.
    """
    return parzen(config, seed, at_farthest)


def at_farthest(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that reached it as complete with their value there, infeasible ones as pruned, no others.

    Running ones stay, so that they are kept clear of.
    """
    enough = 3 + max((len(t.params) for t in trials), default=0)
    reached: Counter[int] = Counter(step for t in trials for step in t.intermediate_values)
    steps = [step for step, count in reached.items() if count >= enough]
    seen: list[FrozenTrial] = []
    for trial in trials:
        value = trial.intermediate_values.get(max(steps)) if steps else None
        if value is not None:
            seen.append(retold(trial, OptunaState.COMPLETE, value))
        elif trial.state in _KEPT and not trial.intermediate_values:
            seen.append(trial)
    return seen
