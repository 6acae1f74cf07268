"""Where the time of a trial goes: `python -m tests.benchmarks.where [--trials NAME ...] [--out FILE]`.

Trains trials of the bundled quickstart, one of each schedule, in this process, one worker and one thread,
with a stopwatch on every part: each second counts for the innermost part that it is spent in. Prints JSON,
then a table of seconds and shares. The store begins empty, so the first trial that needs a boundary pays for
it. On a machine that does other work `--clock cpu`, which has all threads in it, is the better measure.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.results import machine, tell
from tests.benchmarks.step_speed import CLOCKS, Clock, scratch, trial
from training import ahead, draft, engine, loop, reports, suffix, workspace
from training.config import LimitConfig, TrialConfig, UnfreezingConfig
from training.prefix.feed import Feed, Frozen
from training.team import Team

TRIALS = {
    "head": (UnfreezingConfig(schedule="head"), 32),
    "top": (UnfreezingConfig(schedule="top", depth=2), 16),
    "gradual": (UnfreezingConfig(schedule="gradual", depth=4), 32),
    "full": (UnfreezingConfig(schedule="full"), 16),
}
"""Schedule and batch size."""
PARTS: list[tuple[str, Any, str]] = [
    ("model and data", workspace, "load"),
    ("prefix store", Frozen, "entry"),
    ("engine", suffix, "build"),
    ("engine", engine.Engine, "__init__"),
    ("engine", engine.Engine, "close"),
    ("batches", Feed, "batch"),
    ("batches", ahead, "_due"),
    ("forward and backward", loop, "gradients"),
    ("update", loop, "_update"),
    ("reports", loop, "report_progress"),
    ("evaluation", reports, "evaluate"),
    ("checkpoints", loop, "_snapshot"),
    ("checkpoints", draft.Draft, "__init__"),
    ("checkpoints", draft.Draft, "files"),
    ("checkpoints", draft.Draft, "commit"),
    ("proofs", loop, "prove"),
    ("proofs", workspace.Setting, "touched"),
]


class Stopwatch:
    """Seconds by part; what runs inside another part counts for itself alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open = ["the rest"]
        self._since = clock()
        self.seconds: Counter[str] = Counter()

    def turn(self) -> None:
        """Book the time up to now."""
        now = self._clock()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def on(self, part: str, owner: Any, name: str) -> None:
        """Watch a function."""
        real = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self._open.append(part)
            try:
                return real(*args, **kwargs)
            finally:
                self.turn()
                self._open.pop()

        setattr(owner, name, watched)


def config_of(name: str, examples: int, epochs: float) -> TrialConfig:
    """A trial of the quickstart."""
    unfreezing, batch_size = TRIALS[name]
    made = trial(examples, batch_size, "fp32", 0)
    limit = LimitConfig(train=examples, validation=max(examples // 4, 32))
    training = replace(made.training, epochs=epochs, evaluations_per_epoch=2, unfreezing=unfreezing)
    return replace(made, training=training, data=replace(made.data, limit=limit))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=1.5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    before = machine()
    found: dict[str, dict[str, float]] = {}
    with scratch() as cache:
        watch = Stopwatch(CLOCKS[asked.clock])
        for part in PARTS:
            watch.on(*part)
        warm = workspace.Workspace(Team(), cache)
        for name in asked.trials:
            config = config_of(name, asked.examples, asked.epochs)
            so_far = Counter(watch.seconds)
            with tempfile.TemporaryDirectory() as directory:
                loop.train(config, workspace=warm, reporter=Clock(), directory=Path(directory))
            watch.turn()
            found[name] = {part: watch.seconds[part] - so_far[part] for part in watch.seconds}
    document = {
        "examples": asked.examples,
        "epochs": asked.epochs,
        "clock": asked.clock,
        "machine": before,
        "seconds": found,
    }
    tell(document, asked.out, table(found))


def table(found: dict[str, dict[str, float]]) -> str:
    """Parts by trial and in all, the largest first."""
    whole: Counter[str] = Counter()
    for seconds in found.values():
        whole.update(seconds)
    lines = [" ".join([f"{'seconds':<22}", *(f"{name:>9}" for name in found), f"{'all':>9} {'share':>6}"])]
    for part, seconds in whole.most_common():
        row = [f"{found[name].get(part, 0.0):>9.2f}" for name in found]
        lines.append(" ".join([f"{part:<22}", *row, f"{seconds:>9.2f} {seconds / whole.total():>6.1%}"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
