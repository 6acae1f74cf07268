"""The ledger as a sampler sees it: what is known from before beside its own trials, and a draft on top.

A draft is a trial that is being drawn. It lives in memory alone, so that one that repeats a known trial can
be thrown away; the one that is taken goes into the ledger whole, as one entry.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search.objectives import Objective, values_of
from search.records import Result, TrialRecord, TrialState

STEPS_PER_EPOCH = 10_000
_DRAFT_ID = -1


def prior_trial(
    number: int,
    stored: Mapping[str, Any],
    suggest: Callable[[Any], Mapping[str, Any]],
    objectives: Sequence[Objective],
) -> FrozenTrial:
    """The trial of an earlier sweep as a ledger keeps it (`search/warm_start.py`), for samplers.

    Args:
        number: among all that the ledger keeps; the trial's own is below zero.
        suggest: draws the parameters of this sweep.
    """
    fixed = optuna.trial.FixedTrial(dict(stored["params"]))
    suggest(fixed)
    record = TrialRecord(
        number=number,
        state=TrialState(stored["state"]),
        params={},
        seed=0,
        results=tuple(Result(epochs=r["epochs"], metrics=r["metrics"]) for r in stored["results"]),
    )
    reached = {
        round(r.epochs * STEPS_PER_EPOCH): r.metrics.get(objectives[0].name, math.nan) for r in record.results
    }
    values = values_of(record, objectives)
    complete = record.state is TrialState.COMPLETE and values is not None
    trial = optuna.trial.create_trial(
        state=OptunaState.COMPLETE if complete else OptunaState.PRUNED,
        values=values if complete else None,
        params=fixed.params,
        distributions=fixed.distributions,
        intermediate_values={step: value for step, value in reached.items() if math.isfinite(value)},
        user_attrs={"state": record.state.value},
    )
    trial.number = trial._trial_id = -2 - number
    return trial


class View(BaseStorage):
    """A storage over the ledger's, of which samplers read, and in which at most one trial is drawn.

    Args:
        storage: the ledger's.
        study_id: the sweep's study.
        prior: finished trials of other sweeps, numbered below zero.
    """

    def __init__(self, storage: BaseStorage, study_id: int, prior: Sequence[FrozenTrial] = ()) -> None:
        self._storage = storage
        self._study_id = study_id
        self._prior = list(prior)
        self._draft: FrozenTrial | None = None

    def study(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        """The sweep's study over this view, to draw a trial from with `sampler`."""
        name = self._storage.get_study_name_from_id(self._study_id)
        return optuna.Study(name, self, sampler=sampler, pruner=optuna.pruners.NopPruner())

    def draw(self, sampler: optuna.samplers.BaseSampler, fixed: Mapping[str, Any]) -> optuna.Trial:
        """A fresh draft, in place of an earlier one; parameters in `fixed` have these values."""
        self._draft = FrozenTrial(
            number=len(self._storage.get_all_trials(self._study_id, deepcopy=False)),
            state=OptunaState.RUNNING,
            value=None,
            datetime_start=datetime.datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={"fixed_params": dict(fixed)} if fixed else {},
            intermediate_values={},
            trial_id=_DRAFT_ID,
        )
        return optuna.Trial(self.study(sampler), _DRAFT_ID)

    def keep(self, attributes: Mapping[str, Any]) -> None:
        """Enter the draft in the ledger, with `attributes` as the trial's user attributes."""
        assert self._draft is not None, "nothing was drawn"
        self._draft.user_attrs = dict(attributes)
        self._storage.create_new_trial(self._study_id, template_trial=self._draft)
        self._draft = None

    # What samplers read

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial_id == _DRAFT_ID:
            assert self._draft is not None
            return self._draft
        prior = next((t for t in self._prior if t._trial_id == trial_id), None)
        return prior or self._storage.get_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[OptunaState] | None = None
    ) -> list[FrozenTrial]:
        own = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        extra = [*self._prior, *([self._draft] if self._draft is not None else [])]
        found = [t for t in extra if states is None or t.state in states]
        drafted = [t for t in found if t is self._draft]
        return [*(t for t in found if t is not self._draft), *own, *drafted]

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._storage.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._storage.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[Any]:
        return list(self._storage.get_all_studies())

    # What samplers write

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        draft = self._drafted(trial_id)
        draft.distributions[param_name] = distribution
        draft.params[param_name] = distribution.to_external_repr(param_value_internal)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._drafted(trial_id).user_attrs[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id == _DRAFT_ID:
            self._drafted(trial_id).system_attrs[key] = value
        else:
            self._storage.set_trial_system_attr(trial_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._storage.set_study_system_attr(study_id, key, value)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._storage.set_study_user_attr(study_id, key, value)

    # What has no place here

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        raise NotImplementedError("a view has the one study of its ledger")

    def delete_study(self, study_id: int) -> None:
        raise NotImplementedError("a view has the one study of its ledger")

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        raise NotImplementedError("`draw` makes trials")

    def set_trial_state_values(
        self, trial_id: int, state: OptunaState, values: Sequence[float] | None = None
    ) -> bool:
        raise NotImplementedError("trials are told to the ledger")

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        raise NotImplementedError("trials are told to the ledger")

    def _drafted(self, trial_id: int) -> FrozenTrial:
        assert trial_id == _DRAFT_ID, "only a draft takes parameters"
        assert self._draft is not None, "nothing is being drawn"
        return self._draft
