"""Where a sweep is: its state, its trials, its best one, and what it has cost so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from search import forecasts, mirror
from search.budget import Usage, describe, usage
from search.config import BudgetConfig
from search.forecasts import compare
from search.life import Life, SweepState
from search.presence import Driving, Presence
from search.progress import eta_s
from search.records import Goal, TrialRecord, TrialState, best_of
from search.results.leaderboard import best_row
from search.results.text import UNKNOWN, Column, duration, grid, measure, number

if TYPE_CHECKING:
    from search.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Status:
    """A sweep as it stands."""

    name: str
    directory: str
    state: SweepState
    life: Life
    metric: str
    goal: Goal
    trials: Sequence[TrialRecord]
    target: int
    """How many trials it is to have."""
    waiting: int
    """Trials that were picked by hand and have not begun."""
    concurrency: int
    driving: Driving | None
    used: Usage
    budget: BudgetConfig
    forecast: Mapping[str, Any] | None
    """What `thaw plan` foretold, where it did."""

    @property
    def best(self) -> TrialRecord | None:
        """The best trial; None while none has a value."""
        return best_of(self.trials, self.metric, self.goal)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return dict(sorted(Counter(trial.state.value for trial in self.trials).items()))

    @property
    def ended(self) -> int:
        """Trials that have ended."""
        return sum(trial.state.finished for trial in self.trials)

    @property
    def seconds(self) -> float:
        """Training time of all trials."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def gpu_seconds(self) -> float:
        """GPUs held, times seconds."""
        return sum(trial.gpu_seconds for trial in self.trials)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end, while it runs and can be known."""
        if self.state is not SweepState.RUNNING:
            return None
        return eta_s(self.trials, self.target, self.concurrency)

    @property
    def compared(self) -> dict[str, Any] | None:
        """What was used against what was foretold; None without a forecast."""
        if self.forecast is None:
            return None
        used = self.used
        return compare(self.forecast, wall_s=used.hours * 3600, gpu_hours=used.gpu_hours, cost=used.cost)

    def summary(self) -> dict[str, Any]:
        """One row of a list of sweeps, fit for strict JSON."""
        best = self.best
        return {
            "name": self.name,
            "state": self.state.value,
            "trials": len(self.trials),
            "ended": self.ended,
            "target": self.target,
            "metric": self.metric,
            "best": None if best is None else best.value(self.metric, self.goal),
            "seconds": round(self.seconds, 3),
            "gpu_seconds": round(self.gpu_seconds, 3),
        }

    def document(self) -> dict[str, Any]:
        """All of it, fit for strict JSON."""
        running = [t for t in self.trials if t.state is TrialState.RUNNING]
        return {
            **self.summary(),
            "directory": self.directory,
            "reason": self.life.reason or None,
            "counts": self.counts,
            "waiting": self.waiting,
            "best": best_row(self.trials, self.metric, self.goal),
            "running": [
                {"trial": t.number, "epochs": t.epochs, "value": t.value(self.metric, self.goal)}
                for t in running
            ],
            "failed": [{"trial": t.number, "error": t.error} for t in self.trials if t.error is not None],
            "eta_seconds": self.eta_s,
            "used": asdict(self.used),
            "budget": asdict(self.budget),
            "forecast": self.compared,
            "driver": None if self.driving is None else asdict(self.driving),
        }

    def text(self) -> str:
        """For people, in a few lines."""
        best = self.best
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items()) or "none yet"
        waiting = f", {self.waiting} picked by hand" if self.waiting else ""
        lines = {
            "sweep": self.name,
            "state": f"{self.state}{f' ({self.life.reason})' if self.life.reason else ''}",
            "trials": f"{self.ended} of {self.target} ended: {counts}{waiting}",
            "best": UNKNOWN
            if best is None
            else f"{measure(best.value(self.metric, self.goal))} {self.metric} (trial {best.number})",
            **{
                f"trial {t.number}": f"epoch {number(t.epochs)}, {measure(t.value(self.metric, self.goal))}"
                for t in self.trials
                if t.state is TrialState.RUNNING
            },
            "trained": duration(self.seconds)
            + (f", {self.gpu_seconds / 3600:.2f} GPU-hours" if self.gpu_seconds else ""),
            "used": ", ".join(describe(self.used, self.budget)) or UNKNOWN,
            **(
                {}
                if self.forecast is None
                else {"forecast": f"wall-clock {duration(self.forecast['wall_s'])} for all of it"}
            ),
            "to go": duration(self.eta_s),
            "driver": UNKNOWN
            if self.driving is None
            else f"process {self.driving.pid} on {self.driving.host}",
            "directory": self.directory,
        }
        width = max(map(len, lines))
        return "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())


def of(sweep: Sweep) -> Status:
    """A sweep as it stands, by its ledger and its driver's mark."""
    study = sweep.read()
    driving = Presence(sweep.directory).driver()
    wanted = sweep.spec.resources.max_concurrent
    trials = study.trials()
    running = sum(trial.state is TrialState.RUNNING for trial in trials)
    return Status(
        name=sweep.spec.name,
        directory=mirror.shown(sweep.directory),
        state=sweep.state(study),
        life=study.life,
        metric=study.metric,
        goal=study.goal,
        trials=trials,
        target=sweep.target(study),
        waiting=study.waiting,
        concurrency=max(1, running) if wanted == "auto" else wanted,
        driving=driving,
        used=usage(trials, study.sittings, sweep.spec.resources.prices),
        budget=sweep.spec.search.budget,
        forecast=forecasts.read(sweep.directory),
    )


def table(rows: Sequence[Status], *, width: int | None = None) -> Table:
    """Sweeps one below the other, fitted to `width` characters."""
    bests = [row.best for row in rows]
    columns = [
        Column(header="sweep", justify="left", cells=[row.name for row in rows]),
        Column(header="state", justify="left", cells=[row.state.value for row in rows]),
        Column(header="trials", cells=[f"{row.ended}/{row.target}" for row in rows]),
        Column(
            header="best",
            cells=[
                UNKNOWN if best is None else measure(best.value(row.metric, row.goal))
                for row, best in zip(rows, bests, strict=True)
            ],
        ),
        Column(header="metric", justify="left", cells=[row.metric for row in rows], drop=2),
        Column(header="trained", cells=[duration(row.seconds) for row in rows], drop=3),
    ]
    return grid(columns, width=width)
