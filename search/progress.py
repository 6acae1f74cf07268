"""The view of a running sweep: a live table on a terminal, one line an event elsewhere.

`render`, `events` and `eta_s` are functions of the records; `Progress` puts them on the screen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.records import Goal, TrialRecord, TrialState, best_of, ranked, score
from search.results.leaderboard import STATE_STYLES, error_columns, parameter_columns, time_text
from search.results.text import UNKNOWN, Column, duration, grid, measure, number

# Lines around the rows: two of header, column names, the line on what is left out, the cursor's.
_FRAME_LINES = 5


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where a running trial is between two evaluations."""

    phase: str
    epochs: float
    train_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """All that the screen shows."""

    name: str
    metric: str
    goal: Goal
    trials: Sequence[TrialRecord]
    total: int
    """Trials that the sweep will have."""
    concurrency: int = 1
    """Trials that run at a time."""
    elapsed_s: float = 0.0
    live: Mapping[int, Step] = field(default_factory=dict)
    """By trial number; only what runs just now."""
    notice: str | None = None
    """What the sweep is doing besides training: `starting workers`, `stopping`."""


def eta_s(trials: Sequence[TrialRecord], total: int, concurrency: int) -> float | None:
    """Seconds to the end of the sweep; None while no trial has ended.

    Mean training time of the ended trials (early-stopped ones included, failed ones not) times the
    trials still to end, less what the unfinished ones have behind them, over `concurrency`.
    """
    finished = [t for t in trials if t.state.finished]
    remaining = total - len(finished)
    if remaining <= 0:
        return 0.0
    times = [t.seconds for t in finished if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if not times:
        return None
    mean = sum(times) / len(times)
    behind = sum(min(t.seconds, mean) for t in trials if not t.state.finished)
    return max(0.0, mean * remaining - behind) / max(1, min(concurrency, remaining))


def render(view: View, *, height: int = 40, width: int = 120) -> RenderableType:
    """The live table in `height` lines of `width`: running trials, then the best, then the latest ended."""
    shown = _chosen(view, max(1, height - _FRAME_LINES))
    parts: list[RenderableType] = [_header(view)]
    if shown:
        parts.append(_table(view, shown, width))
    hidden = len(view.trials) - len(shown)
    if hidden > 0:
        parts.append(Text(f"... and {hidden} more", style="dim"))
    return Group(*parts)


def _header(view: View) -> Text:
    counts = {state: sum(t.state is state for t in view.trials) for state in TrialState}
    shown = [TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED, TrialState.FAILED]
    shown += [state for state in TrialState if counts[state] and state not in shown]
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(view.name, style="bold")
    line.append(f"  {sum(t.state.finished for t in view.trials)}/{view.total} trials: ")
    for i, state in enumerate(shown):
        line.append(", " if i else "")
        line.append(f"{counts[state]} {state}", style=STATE_STYLES[state] if counts[state] else "dim")
    best = best_of(view.trials, view.metric, view.goal)
    line.append("\nbest ")
    if best is None:
        line.append(UNKNOWN)
    else:
        line.append(measure(best.value(view.metric, view.goal)), style="bold green")
        line.append(f" (trial {best.number})")
    eta = eta_s(view.trials, view.total, view.concurrency)
    line.append(f"  elapsed {duration(view.elapsed_s)}  ETA {duration(eta)}")
    if view.notice:
        line.append(f"  {view.notice}", style="yellow")
    return line


def _chosen(view: View, lines: int) -> list[TrialRecord]:
    """The trials that get a row, in the order of rows."""
    running = [t for t in view.trials if not t.state.finished]
    running.sort(key=lambda t: (t.state is not TrialState.RUNNING, t.number))
    best_first = [t for t in ranked(view.trials, view.metric, view.goal) if t.state.finished]
    valued = [t for t in best_first if t.value(view.metric, view.goal) is not None]
    if len(running) + len(best_first) <= lines:
        return [*running, *best_first]
    # The best get about two thirds of what is left, the latest the rest, so that news is seen too.
    running = running[: max(1, lines - 1)] if valued else running[:lines]
    left = lines - len(running)
    chosen = valued[: -(-2 * left // 3)]
    taken = {t.number for t in chosen}
    latest = [t for t in reversed(view.trials) if t.state.finished and t.number not in taken]
    return [*running, *chosen, *latest[: left - len(chosen)]]


def _table(view: View, shown: Sequence[TrialRecord], width: int) -> Table:
    best = best_of(view.trials, view.metric, view.goal)
    steps = [view.live.get(t.number) if t.state is TrialState.RUNNING else None for t in shown]
    rows = list(zip(shown, steps, strict=True))
    values = [
        Text(measure(t.value(view.metric, view.goal)), style="bold green" if t is best else "") for t in shown
    ]
    states = [Text(t.state, style=STATE_STYLES[t.state]) for t in shown]
    epochs = [f"{max(s.epochs, t.epochs) if s else t.epochs:.2f}" for t, s in rows]
    columns = [
        Column(header="trial", cells=[str(t.number) for t in shown]),
        Column(header="state", cells=states, justify="left"),
        Column(header="phase", cells=[s.phase if s else _phase(t) for t, s in rows], justify="left", drop=1),
        Column(header=view.metric.removeprefix("eval/"), cells=values),
        Column(header="loss", cells=[measure(s.train_loss if s else None) for s in steps], drop=12),
        Column(header="epochs", cells=epochs, drop=2),
        *parameter_columns(shown, view.trials),
        Column(header="time", cells=[time_text(t) for t in shown], drop=11),
        *error_columns(shown),
    ]
    return grid(columns, width=width)


def _phase(trial: TrialRecord) -> str:
    """The phase of the trial's latest evaluation: at a boundary, the one that ends there."""
    begun = [p.name for p in trial.phases if p.start_epoch < trial.epochs or p.start_epoch == 0]
    return begun[-1] if begun else UNKNOWN


def events(before: Sequence[TrialRecord], after: Sequence[TrialRecord], metric: str, goal: Goal) -> list[str]:
    """What happened from one state of the ledger to the next, one line an event, for logs.

    A trial begins, is evaluated, pauses, goes on, ends; a new best is said where it is found.
    """
    old = {t.number: t for t in before}
    lines: list[str] = []
    leader = best_of(before, metric, goal)
    best = None if leader is None else leader.value(metric, goal)
    for trial in after:
        known = old.get(trial.number)
        if known is None:
            drawn = ", ".join(f"{key}={number(value)}" for key, value in trial.params.items())
            lines.append(f"trial {trial.number}: begins with {drawn}")
        seen = set() if known is None else {r.epochs for r in known.results}
        for result in trial.results:
            if result.epochs in seen:
                continue
            value = result.metrics.get(metric)
            line = f"trial {trial.number}: epoch {number(result.epochs)}, {metric} {measure(value)}"
            if score(value, goal) > score(best, goal):
                best = value
                line += " (best so far)"
            lines.append(f"{line}, {duration(result.seconds)}")
        was = TrialState.RUNNING if known is None else known.state
        if trial.state is not was:
            what = "goes on" if trial.state is TrialState.RUNNING else trial.state
            lines.append(f"trial {trial.number}: {what}{_why(trial)}")
    return lines


def _why(trial: TrialRecord) -> str:
    return f": {trial.error}" if trial.error else f" after {number(trial.epochs)} epochs"


class Progress:
    """Shows a sweep while it runs, between `__enter__` and `__exit__`.

    A live table when the console is a terminal, and the lines of `events` when it is not. The table is
    wiped at the end, to make room for the leaderboard.
    """

    def __init__(self, *, console: Console | None = None, stderr: bool = False) -> None:
        """`stderr`: write there, where standard output is for a document."""
        self._console = console or Console(stderr=stderr)
        self._view: View | None = None
        self._received = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=2, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, view: View) -> None:
        """Show `view` from now on. Its elapsed time ticks on by itself."""
        before: Sequence[TrialRecord] = () if self._view is None else self._view.trials
        if not self._console.is_terminal:
            old_notice = None if self._view is None else self._view.notice
            if view.notice and view.notice != old_notice:
                self.say(view.notice)
            for line in events(before, view.trials, view.metric, view.goal):
                self.say(line)
        self._received = time.monotonic()
        self._view = view

    def say(self, line: str) -> None:
        """Write a line that stays, above the table."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        if self._view is None:
            return Text("starting")
        ticked = self._view.elapsed_s + time.monotonic() - self._received
        size = self._console.size
        return render(replace(self._view, elapsed_s=ticked), height=size.height, width=size.width)
