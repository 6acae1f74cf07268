"""What the trials of a sweep need in memory: the estimate of each phase that the space can draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from search.preflight import SHAPING, corners, extremes
from search.spec import SweepSpec
from training.config import TrialConfig
from training.memory import DEVICE_PARTS, MemoryEstimate, ModelShape, estimate, micro_batch, read_shape
from training.schedules import describe, phases

_SETTINGS = ("precision", "optimizer", "zero.", "activation_checkpointing", "dropout")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A phase of a schedule, and what a worker needs for it."""

    schedule: str
    phase: str
    thawed: str
    model: str
    micro_batch: int
    tokens: int
    memory: MemoryEstimate


def rows(spec: SweepSpec) -> list[Row]:
    """Of every schedule that the space can draw, the trial that needs the most: a row for each phase.

    That is at the largest batch size and `max_length`, on workers like those of `resources`.

    Raises:
        ValueError: where the model is not there, or a schedule does not fit it.
    """
    device: Any = "cuda" if spec.resources.on_gpu else "cpu"
    shapes: dict[tuple[str, str | None], ModelShape] = {}
    most: dict[str, list[Row]] = {}
    for corner in corners(spec, SHAPING + _SETTINGS):
        trial = _largest(spec, corner)
        key = (trial.model.name, trial.model.revision)
        if key not in shapes:
            shapes[key] = read_shape(trial.model, trial.task)
        found = _rows(trial, shapes[key], spec, device)
        schedule = trial.training.unfreezing.schedule
        if schedule not in most or _peak(found) > _peak(most[schedule]):
            most[schedule] = found
    return [row for found in most.values() for row in found]


def _rows(trial: TrialConfig, shape: ModelShape, spec: SweepSpec, device: Any) -> list[Row]:
    training, workers = trial.training, spec.resources.fewest_workers
    planned = phases(training.unfreezing, len(shape.blocks), training.epochs, trial.seed)
    size = micro_batch(training, workers=workers, device=device)
    return [
        Row(
            schedule=training.unfreezing.schedule,
            phase=phase.name,
            thawed=describe(phase, len(shape.blocks)),
            model=trial.model.name,
            micro_batch=size,
            tokens=trial.task.max_length,
            memory=estimate(
                shape,
                training,
                phase,
                tokens=trial.task.max_length,
                workers=workers,
                micro_batch=size,
                earlier=planned[:index],
                device=device,
                stored=spec.resources.prefix_store.mode == "store",
            ),
        )
        for index, phase in enumerate(planned)
    ]


def _largest(spec: SweepSpec, trial: TrialConfig) -> TrialConfig:
    """The trial with the largest batches and inputs that the space can draw."""
    greatest: dict[str, Any] = {}
    for parameter in spec.space.parameters:
        if parameter.path in ("batch_size", "micro_batch_size", "task.max_length"):
            sizes = [value for value in extremes(parameter) if isinstance(value, int)]
            if sizes:
                greatest[parameter.path] = max(sizes)
    length = greatest.pop("task.max_length", trial.task.max_length)
    return replace(
        trial, training=replace(trial.training, **greatest), task=replace(trial.task, max_length=length)
    )


def _peak(found: Sequence[Row]) -> int:
    return max(row.memory.total for row in found)


def limit(found: Sequence[Row]) -> str:
    """Which phase needs the most, and of what, in one line."""
    row = max(found, key=lambda row: row.memory.device)
    need = row.memory
    part = need.largest
    share = getattr(need, part) / need.device
    remedy = {
        "activations": "a smaller micro_batch_size or activation_checkpointing takes less",
        "buffers": "a smaller micro_batch_size takes less",
        "prefix": "a lower precision takes less",
    }.get(part, "a higher zero.stage on more workers, or zero.offload, takes less")
    return (
        f"schedule {row.schedule}, phase {row.phase} needs the most: {megabytes(need.device)} MB on each "
        f"worker, {share:.0%} of it {part}; {remedy}"
    )


def to_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values, in bytes."""
    return [
        {
            **asdict(row),
            "memory": {
                **asdict(row.memory),
                "device": row.memory.device,
                "host": row.memory.host,
                "total": row.memory.total,
            },
        }
        for row in found
    ]


def table(found: Sequence[Row], *, width: int | None = None) -> Any:
    """The rows as a table for a terminal of `width` characters, in MB: the largest parts stay the longest."""
    from search.results.text import Column, grid

    def need(of: Callable[[MemoryEstimate], int]) -> list[str]:
        return [megabytes(of(row.memory)) for row in found]

    def part(name: str) -> Callable[[MemoryEstimate], int]:
        return lambda estimate: int(getattr(estimate, name))

    by_size = sorted(DEVICE_PARTS, key=lambda name: -max(part(name)(row.memory) for row in found))
    first = found[0]
    columns = [
        Column(header="schedule", justify="left", cells=[row.schedule for row in found]),
        Column(header="phase", justify="left", cells=[row.phase for row in found]),
        Column(header="thawed", justify="left", cells=[row.thawed for row in found], drop=1),
        Column(header="parameters", cells=[f"{row.memory.thawed:,}" for row in found], drop=2),
        *(Column(header=name, cells=need(part(name)), drop=3 + by_size.index(name)) for name in DEVICE_PARTS),
        Column(header="worker", cells=need(lambda estimate: estimate.device)),
        Column(header="host", cells=need(lambda estimate: estimate.host)),
    ]
    title = f"MB on each worker, micro-batches of {first.micro_batch} x {first.tokens} tokens"
    return grid(columns, width=width, title=title)


def megabytes(count: int) -> str:
    """Bytes in MB: whole ones from ten on."""
    return f"{count / 1e6:,.0f}" if count >= 1e7 or count == 0 else f"{count / 1e6:.1f}"
