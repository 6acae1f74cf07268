"""A short measurement of what training costs on this machine: a few steps of each kind of phase.

It is the training loop itself that runs, on the real model and data, in plain processes without Ray: one for
each trial that will train here at a time, all at once, since they share caches and memory bandwidth.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from training.batches import epoch_batches, steps_per_epoch
from training.config import (
    EarlyStoppingConfig,
    PhaseConfig,
    PrefixStoreConfig,
    TrialConfig,
    UnfreezingConfig,
)
from training.reporter import Course, Evaluation, Progress, Verdict
from training.rng import derive

if TYPE_CHECKING:
    import numpy as np

    from training.workspace import Workspace

STEPS = 5
"""Steps of each measurement; the first is not counted, as it allocates."""
TRAINED, EVALUATED = 2000, 500
"""Examples to train and to evaluate on, at most; what depends on their number is scaled."""
_SEEDS = 100
"""That are looked through for one that is typical."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A kind of phase, as far as its cost goes."""

    depth: int
    """Units above the frozen prefix: 0 for the head alone, L for head and all blocks, L + 1 with the
    embeddings."""
    batch_size: int
    """Examples in a step of one worker."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a kind of phase costs, in seconds of one process."""

    shape: Shape
    begin_s: float
    """To the first step: the engine is built."""
    step_s: float
    evaluation_s: float
    """An evaluation with its checkpoint."""
    store_s: float
    """What the first trial at this depth takes longer, as it computes the output of the frozen
    blocks for all that come after it."""
    trained: int
    """Examples to train on."""
    evaluated: int
    """Examples that were evaluated."""
    end_s: float
    """After the last evaluation: the proofs."""
    checkpoint_bytes: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What was measured."""

    start_s: float
    """Until a process has its libraries, the model and the data."""
    costs: tuple[Cost, ...]
    processes: int
    """That measured at the same time."""


@dataclass
class _Clock:
    """A reporter that notes when it is told what."""

    started_at: float = 0.0
    steps_at: list[float] = field(default_factory=list)
    evaluated_at: float = 0.0
    checkpoint: str = ""

    def started(self, course: Course) -> None:
        self.started_at = time.perf_counter()

    def progressed(self, progress: Progress) -> None:
        self.steps_at.append(time.perf_counter())

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        self.evaluated_at = time.perf_counter()
        self.checkpoint = evaluation.checkpoint
        return Verdict.CONTINUE


def probe(
    config: TrialConfig,
    shapes: Sequence[Shape],
    *,
    store: PrefixStoreConfig,
    processes: int,
    cpus: int,
    gpu: bool,
) -> Costs:
    """Measure what each of `shapes` costs a trial like `config`.

    Args:
        store: of the output of frozen blocks, as the sweep has it.
        processes: how many measure at the same time; the mean over them is returned.
        cpus: threads of each.
        gpu: whether they use the GPU.

    Raises:
        ValueError: where model or data are not there, or there is no GPU.
    """
    context = multiprocessing.get_context("spawn")  # a fork would take over threads and locks
    with ProcessPoolExecutor(max_workers=processes, mp_context=context) as pool:
        given = (config, list(shapes), store, cpus, gpu, time.time())
        found = [future.result() for future in [pool.submit(_measure, *given) for _ in range(processes)]]
    return Costs(
        start_s=statistics.mean(start_s for start_s, _ in found),
        costs=tuple(_mean(costs) for costs in zip(*(costs for _, costs in found), strict=True)),
        processes=processes,
    )


def _measure(
    config: TrialConfig,
    shapes: Sequence[Shape],
    store: PrefixStoreConfig,
    cpus: int,
    gpu: bool,
    began: float,
) -> tuple[float, list[Cost]]:
    import torch

    from training.prefix import clear
    from training.team import Team
    from training.workspace import Workspace

    if gpu and not torch.cuda.is_available():
        raise ValueError(
            "--probe: this machine has no GPU, and the trials train on GPUs; run it on a machine that "
            "has one, or take the figures of an earlier sweep with --from NAME"
        )
    torch.set_num_threads(cpus)
    limit = replace(
        config.data.limit,
        train=min(config.data.limit.train or TRAINED, TRAINED),
        validation=min(config.data.limit.validation or EVALUATED, EVALUATED),
    )
    config = replace(config, data=replace(config.data, limit=limit))
    # A cache of its own: what it leaves there would make the sweep that is foretold faster.
    with tempfile.TemporaryDirectory(prefix="thaw-probe-") as folder:
        workspace = Workspace(Team(None if gpu else torch.device("cpu")), Path(folder), store)
        try:
            workspace.open(config)
            start_s = time.time() - began
            whole = Shape(depth=workspace.open(config).blocks.num_blocks + 1, batch_size=shapes[0].batch_size)
            _once(config, workspace, whole)  # what a process does for the first time takes longer
            return start_s, [_cost(config, workspace, shape) for shape in shapes]
        finally:
            clear(Path(folder))


def _cost(config: TrialConfig, workspace: Workspace, shape: Shape) -> Cost:
    first, again = (_once(config, workspace, shape) for _ in range(2))
    longer = (first.begin_s + first.evaluation_s) - (again.begin_s + again.evaluation_s)
    return replace(again, store_s=max(0.0, longer))


def _once(config: TrialConfig, workspace: Workspace, shape: Shape) -> Cost:
    """One short trial: some steps in a phase of this shape, and an evaluation."""
    from training.loop import train

    setting = workspace.open(config)
    training = replace(
        config.training,
        batch_size=shape.batch_size,
        epochs=STEPS / steps_per_epoch(len(setting.data.train), shape.batch_size),
        evaluations_per_epoch=1,
        log_every=1,
        early_stopping=EarlyStoppingConfig(),
        unfreezing=UnfreezingConfig(
            schedule="phases",
            phases=[PhaseConfig(start=0, thaw=_thawed(shape.depth, setting.blocks.num_blocks))],
        ),
    )
    seed = typical(setting.data.train.lengths, shape.batch_size)
    clock = _Clock()
    with tempfile.TemporaryDirectory(prefix="thaw-probe-") as directory:
        typically = replace(config, training=training, seed=seed)
        train(typically, workspace=workspace, reporter=clock, directory=Path(directory))
        ended_at = time.perf_counter()
        files = [path for path in Path(clock.checkpoint).rglob("*") if path.is_file()]
        checkpoint_bytes = sum(path.stat().st_size for path in files)
    between = [later - earlier for earlier, later in pairwise(clock.steps_at)]
    step_s = statistics.mean(between) if between else clock.steps_at[0] - clock.started_at
    return Cost(
        shape=shape,
        begin_s=max(0.0, clock.steps_at[0] - clock.started_at - step_s),
        step_s=step_s,
        store_s=0.0,
        trained=len(setting.data.train),
        evaluation_s=clock.evaluated_at - clock.steps_at[-1],
        evaluated=len(setting.data.validation),
        end_s=ended_at - clock.evaluated_at,
        checkpoint_bytes=checkpoint_bytes,
    )


def typical(lengths: np.ndarray, batch_size: int) -> int:
    """The seed of a trial whose first steps, of those that are timed, are as long as an epoch's on average.

    Batches are of examples of one length, so a few that chance picks may be half as wide, or twice.

    `lengths`: int64 [n], tokens of each example.
    """
    epochs = -(-STEPS // steps_per_epoch(len(lengths), batch_size))

    def padded(seed: int, epoch: int) -> list[int]:
        made = epoch_batches(lengths, batch_size, derive(seed, "batches"), epoch)
        return [len(batch) * int(lengths[batch].max()) for batch in made]

    def apart(seed: int) -> float:
        first, *later = (padded(seed, epoch) for epoch in range(epochs))
        timed = [*first, *chain(*later)][1:STEPS]
        return abs(statistics.mean(timed) / statistics.mean(first) - 1)

    return min(range(_SEEDS), key=apart)


def _thawed(depth: int, num_blocks: int) -> list[int | Literal["head", "embeddings", "all"]]:
    if depth > num_blocks:
        return ["all"]
    return ["head", *range(num_blocks - depth, num_blocks)]


def _mean(costs: Sequence[Cost]) -> Cost:
    def mean(name: str) -> float:
        return statistics.mean(getattr(cost, name) for cost in costs)

    return replace(
        costs[0],
        begin_s=mean("begin_s"),
        step_s=mean("step_s"),
        store_s=mean("store_s"),
        evaluation_s=mean("evaluation_s"),
        end_s=mean("end_s"),
    )
