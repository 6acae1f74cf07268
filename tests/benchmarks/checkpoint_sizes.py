"""What a checkpoint of MiniLM-L6 weighs, by schedule: `python -m tests.benchmarks.checkpoint_sizes`.

Every trial takes 18 steps, so that each phase takes at least one, and its last checkpoint is weighed.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import MODEL, SENTENCES
from training.config import (
    DataConfig,
    LimitConfig,
    ModelConfig,
    TaskConfig,
    TrainingConfig,
    TrialConfig,
    UnfreezingConfig,
)
from training.loop import train
from training.reporter import Course, Evaluation, Progress, Verdict
from training.team import Team
from training.workspace import Workspace

SCHEDULES = {
    "head": UnfreezingConfig(schedule="head"),
    "top, depth 1": UnfreezingConfig(schedule="top", depth=1),
    "top, depth 2": UnfreezingConfig(schedule="top", depth=2),
    "gradual, depth 3": UnfreezingConfig(schedule="gradual", depth=3),
    "bottom-up, depth 3": UnfreezingConfig(schedule="bottom-up", depth=3),
    "lisa, two draws of 1": UnfreezingConfig(schedule="lisa", interval=0.5),
    "chain-thaw": UnfreezingConfig(schedule="chain-thaw"),
    "full": UnfreezingConfig(schedule="full"),
}


class _Silent:
    """A reporter that keeps where the last checkpoint is."""

    checkpoint = ""

    def started(self, course: Course) -> None: ...

    def progressed(self, progress: Progress) -> Verdict:
        return Verdict.CONTINUE

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        self.checkpoint = evaluation.checkpoint
        return Verdict.CONTINUE


@dataclass(frozen=True, kw_only=True)
class Size:
    """A checkpoint, in bytes."""

    weights: int
    state: int
    """Of the optimizer."""
    manifest: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.state + self.manifest


def sizes(schedules: dict[str, UnfreezingConfig], directory: Path) -> dict[str, Size]:
    """The size of each schedule's last checkpoint."""
    workspace = Workspace(Team())
    found: dict[str, Size] = {}
    for name, unfreezing in schedules.items():
        reporter = _Silent()
        config = TrialConfig(
            model=ModelConfig(name=MODEL),
            task=TaskConfig(max_length=16),
            data=DataConfig(
                train=str(SENTENCES / "train.jsonl"),
                validation=str(SENTENCES / "validation.jsonl"),
                limit=LimitConfig(train=36, validation=8),
            ),
            training=TrainingConfig(epochs=1.0, batch_size=2, unfreezing=unfreezing),
            seed=0,
        )
        train(config, workspace=workspace, reporter=reporter, directory=directory / name)
        files = {file.name: file.stat().st_size for file in Path(reporter.checkpoint).iterdir()}

        def of(kind: str, files: dict[str, int] = files) -> int:
            return sum(size for file, size in files.items() if file.startswith(kind))

        found[name] = Size(weights=of("weights-"), state=of("slots-"), manifest=of("manifest"))
    return found


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory:
        found = sizes(SCHEDULES, Path(directory))
    print(f"{'schedule':<22}{'weights':>10}{'state':>10}{'manifest':>10}{'total':>12}")
    for name, size in found.items():
        parts = (size.weights, size.state, size.manifest)
        print(
            f"{name:<22}" + "".join(f"{part / 1e6:10.2f}" for part in parts) + f"{size.total / 1e6:9.2f} MB"
        )
    print(json.dumps({name: size.total for name, size in found.items()}))


if __name__ == "__main__":
    main()
