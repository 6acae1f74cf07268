"""Search-only mode: trials in virtual time, with recorded learning curves in place of training.

No Ray and no torch: the same study, samplers and schedulers run, thousands of trials an hour, and a
sweep that was killed goes on from its ledger like any other.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from search.records import Goal, TrialRecord
from search.schedulers.base import Decision
from search.space import Parameter, SearchSpace, Uniform, suggest
from training.reporter import Evaluation


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Learning curves of many configurations of one task, one evaluation an epoch."""

    name: str
    metric: str
    goal: Goal
    hp_names: tuple[str, ...]
    hp_log: tuple[bool, ...]
    """Which of them are drawn uniformly in the logarithm."""
    configs: np.ndarray
    """[n, d] float64, as recorded."""
    curves: np.ndarray
    """[n, epochs] float64: the metric after each epoch."""

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read an `.npz` of `hp_names`, `hp_log`, `configs`, `curves`, `mode` ("min" or "max") and `metric`.

        Raises:
            ValueError: the file is not such a table.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                table = cls(
                    name=path.stem,
                    metric=str(stored["metric"]),
                    goal="maximize" if str(stored["mode"]) == "max" else "minimize",
                    hp_names=tuple(map(str, stored["hp_names"])),
                    hp_log=tuple(map(bool, stored["hp_log"])),
                    configs=np.asarray(stored["configs"], dtype=np.float64),
                    curves=np.asarray(stored["curves"], dtype=np.float64),
                )
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f"{path}: not a table of learning curves: {error}") from error
        if table.configs.shape != (len(table.curves), len(table.hp_names)) or table.curves.ndim != 2:
            raise ValueError(
                f"{path}: not a table of learning curves: configs are {table.configs.shape}, "
                f"curves {table.curves.shape}, for {len(table.hp_names)} hyperparameters"
            )
        return table

    @property
    def epochs(self) -> int:
        """Full length of a training."""
        return int(self.curves.shape[1])

    @cached_property
    def space(self) -> SearchSpace:
        """What the recorded configurations span."""
        ranges = zip(
            self.hp_names, self.hp_log, self.configs.min(axis=0), self.configs.max(axis=0), strict=True
        )
        return SearchSpace(
            parameters=tuple(
                Parameter(path=name, distribution=Uniform(low=float(low), high=float(high), log=log))
                for name, log, low, high in ranges
            )
        )

    @property
    def suggest(self) -> Callable[[Any], Mapping[str, Any]]:
        """Draws a configuration, define-by-run."""
        return partial(suggest, self.space)

    def unit(self, configs: np.ndarray) -> np.ndarray:
        """Configurations [..., d] in the unit cube, logarithmic ones by their logarithm."""
        log = np.array(self.hp_log)
        low, high = self.configs.min(axis=0), self.configs.max(axis=0)

        def scaled(values: np.ndarray) -> np.ndarray:
            return np.where(log, np.log(np.where(log, values, 1.0)), values)

        return (scaled(configs) - scaled(low)) / np.maximum(scaled(high) - scaled(low), 1e-300)

    @cached_property
    def points(self) -> np.ndarray:
        """The recorded configurations [n, d] in the unit cube."""
        return self.unit(self.configs)


class Rows:
    """Which recorded configuration stands for which trial: the nearest that no earlier trial has.

    Once all are taken they are all free again.

    A function of the trials' parameters in the order of their numbers, so that a sweep that
    goes on finds the same ones again.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._free = np.ones(len(table.configs), dtype=bool)
        self._rows: list[int] = []

    def of(self, number: int, trials: Sequence[TrialRecord]) -> int:
        """The row of trial `number`; `trials` are the sweep's up to it at least."""
        for trial in sorted(trials, key=lambda t: t.number)[len(self._rows) : number + 1]:
            assert trial.number == len(self._rows), "trials are numbered without gaps"
            if not self._free.any():  # the sweep has more trials than the table configurations
                self._free[:] = True
            config = np.array([trial.params[name] for name in self._table.hp_names], dtype=np.float64)
            away = ((self._table.points - self._table.unit(config)) ** 2).sum(axis=1)
            row = int(np.argmin(np.where(self._free, away, np.inf)))
            self._free[row] = False
            self._rows.append(row)
        return self._rows[number]


class Runner(Protocol):
    """Hands out trials and decides on them: what `search.driver.Driver` is to Ray Tune."""

    def next_trial(self) -> TrialRecord | None:
        """The next trial to run, from its latest evaluation on; None when there is none now."""
        ...

    def evaluated(self, number: int, evaluation: Evaluation) -> Decision:
        """Enter an evaluation and decide what becomes of the trial."""
        ...

    def ended(self, number: int) -> Any:
        """Close a trial that ran to its end or was stopped."""
        ...

    def records(self) -> Sequence[TrialRecord]:
        """All trials."""
        ...


def run(
    runner: Runner,
    table: Table,
    *,
    workers: int,
    on_evaluation: Callable[[int, Evaluation], None] | None = None,
) -> float:
    """Run all trials that `runner` hands out, `workers` at a time; an epoch takes one unit of time.

    Nothing is kept but what `runner` keeps, so that a run on the same ledger goes on where
    another one was cut off.

    Args:
        on_evaluation: called with a trial's number and evaluation before it is entered.

    Returns:
        Epochs trained, over all trials.
    """
    rows = Rows(table)
    row_of: dict[int, int] = {}
    epochs_of: dict[int, int] = {}
    clock: list[tuple[int, int]] = []  # when a running trial's next evaluation is done, and its number
    now = spent = 0
    while True:
        while len(clock) < workers and (trial := runner.next_trial()) is not None:
            row_of[trial.number] = rows.of(trial.number, runner.records())
            # One that was cut off after its last evaluation gives that one again.
            epochs_of[trial.number] = min(round(trial.epochs), table.epochs - 1)
            heapq.heappush(clock, (now + 1, trial.number))
        if not clock:
            return spent
        now, number = heapq.heappop(clock)
        spent += 1
        done = epochs_of[number] = epochs_of[number] + 1
        evaluation = Evaluation(
            step=done,
            examples=done,
            epochs=float(done),
            phase="recorded",
            metrics={table.metric: float(table.curves[row_of[number], done - 1])},
            checkpoint=f"{table.name}/trials/{number:04d}/{done}",
            seconds=float(done),
            last=done == table.epochs,
        )
        if on_evaluation is not None:
            on_evaluation(number, evaluation)
        decision = runner.evaluated(number, evaluation)
        if evaluation.last or decision is Decision.STOP:
            runner.ended(number)
        elif decision is Decision.CONTINUE:
            heapq.heappush(clock, (now + 1, number))


def normalised_regret(table: Table, value: float) -> float:
    """How far the best value seen is from the best recorded one: 0 there, 1 at the median configuration's.

    Of each configuration the best epoch counts, as it does for a sweep's checkpoints.
    """
    sign = 1.0 if table.goal == "maximize" else -1.0
    reached = np.nanmax(sign * table.curves, axis=1)
    best, median = float(reached.max()), float(np.median(reached))
    return (best - sign * value) / max(best - median, 1e-300) if math.isfinite(value) else math.inf
