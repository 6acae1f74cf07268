"""What a sweep will do and take, before anything is spent: the facts, the memory, the forecast."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from search import memory, rates, warm_start
from search.forecast import Drawn, Forecast, Rates, exceeded, forecast
from search.memory import Row
from search.packing import Packing, packing
from search.points import first_points, stored
from search.preflight import Facts, check
from search.schedulers import Scheduler, make_scheduler
from search.schedulers.compute import compute_taken
from search.space import suggest
from search.spec import SweepSpec, trial_settings
from search.sweep import find
from search.warm_start import Source

_START_S = 10.0  # of a process, where nothing was measured
# Bytes of a thawed parameter in a checkpoint: weight and both moments in fp32; of any in a model.
_CHECKPOINT_BYTES, _MODEL_BYTES = 12, 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is known of a sweep before it begins."""

    spec: SweepSpec
    facts: Facts
    rungs: tuple[float, ...]
    """Epochs at which the scheduler decides; none where every trial runs to its end."""
    points: Sequence[Mapping[str, Any]]
    """What is tried first."""
    sources: Sequence[Source]
    """Earlier sweeps that it knows."""
    rows: Sequence[Row]
    """Trainable parameters and memory by schedule and phase."""
    packing: Packing
    """How trials lie on GPUs."""
    forecast: Forecast | None
    """None without a measurement."""
    measuring_s: float
    """What the measurement took."""

    @property
    def warnings(self) -> list[str]:
        """What speaks against running it as it is."""
        return exceeded(self.forecast, self.spec.search.budget) if self.forecast is not None else []

    def document(self) -> dict[str, Any]:
        """As plain values."""
        search = self.spec.search.resolved()
        return {
            "name": self.spec.name,
            "metric": asdict(search.metric),
            "sampler": search.sampler.type,
            "scheduler": search.scheduler.type,
            "trials": search.trials,
            "epochs": self.spec.training.epochs,
            "rungs": list(self.rungs),
            "points": [dict(point) for point in self.points],
            "warm_start": [
                {"name": s.name, "trials": len(s.prior), "outside": s.outside} for s in self.sources
            ],
            "data": asdict(self.facts),
            "phases": memory.to_json(self.rows),
            "packing": {**asdict(self.packing), "trials_per_gpu": self.packing.a_gpu},
            "budget": asdict(search.budget),
            "forecast": None if self.forecast is None else self.forecast.to_json(),
            "measuring_s": round(self.measuring_s, 1),
            "warnings": self.warnings,
        }


def plan(
    spec: SweepSpec,
    facts: Facts,
    storage: Path,
    *,
    probe: bool = False,
    earlier: str | None = None,
    concurrent: int | None = None,
) -> Plan:
    """What a sweep will do and take.

    Args:
        facts: what the checks found out.
        storage: where the sweeps are that `search.warm_start` and `earlier` name.
        probe: whether to measure this machine for the forecast.
        earlier: the sweep whose figures it goes by instead.
        concurrent: trials at a time; as many as fit on this machine where neither this nor the file says.

    Raises:
        ValueError: where one of these is not there, or this machine cannot be measured for it.
    """
    taken = compute_taken(lambda record: trial_settings(spec, record.params, record.seed), facts.num_blocks)
    scheduler = make_scheduler(spec.search.resolved().scheduler, spec.search.metric, spec.training, taken)
    rows = memory.rows(spec)
    sources = warm_start.gather(spec, storage)
    began = time.monotonic()
    packed = packing(spec.resources, rows, _gpu_bytes(spec))
    here = _fits_here(spec, packed)
    wanted = spec.resources.max_concurrent
    at_once = concurrent or (max(1, here) if wanted == "auto" else wanted)
    found: Forecast | None = None
    if probe or earlier is not None:
        if earlier is not None:
            measured = _remembered(facts, storage, earlier)
        else:
            measured = _probed(spec, facts, min(at_once, max(1, here)))
        found = _forecast(spec, scheduler, measured, rows, packed, min(at_once, spec.search.trials), here)
    ladder = getattr(scheduler, "ladder", None)
    return Plan(
        spec=spec,
        facts=facts,
        rungs=() if ladder is None else ladder.levels(spec.training.epochs),
        points=first_points(spec),
        sources=sources,
        rows=rows,
        packing=packed,
        forecast=found,
        measuring_s=time.monotonic() - began,
    )


@dataclass(frozen=True, kw_only=True)
class _Measured:
    source: str
    rates: Rates
    around_s: float
    checkpoint_bytes: int


def _probed(spec: SweepSpec, facts: Facts, processes: int) -> _Measured:
    from training.timing import probe

    resources = spec.resources
    configs = [trial_settings(spec, drawn, seed) for seed, drawn in enumerate(_draw(spec, 0, 200))]
    shapes = rates.shapes(
        configs, num_blocks=facts.num_blocks, num_train=facts.num_train, workers=resources.most_workers
    )
    costs = probe(
        configs[0],
        shapes,
        store=resources.prefix_store,
        processes=processes * resources.most_workers,
        cpus=max(1, int(resources.cpus_per_worker)),
        gpu=resources.on_gpu,
    )
    return _Measured(
        source="probe",
        rates=rates.probed(
            costs,
            num_blocks=facts.num_blocks,
            num_train=facts.num_train,
            num_validation=facts.num_validation,
            workers=resources.most_workers,
        ),
        around_s=rates.around(costs.start_s),
        checkpoint_bytes=max(cost.checkpoint_bytes for cost in costs.costs),
    )


def _remembered(facts: Facts, storage: Path, name: str) -> _Measured:
    try:
        earlier = find(name, storage)
        examples = check(earlier.spec).num_train
    except ValueError as error:
        raise ValueError(f"--from: {error}") from error
    found = rates.remembered(
        earlier.spec,
        earlier.read().trials(),
        num_blocks=facts.num_blocks,
        num_train=facts.num_train,
        scale=facts.num_train / examples,
    )
    return _Measured(source=name, rates=found, around_s=rates.around(_START_S), checkpoint_bytes=0)


def _forecast(
    spec: SweepSpec,
    scheduler: Scheduler,
    measured: _Measured,
    rows: Sequence[Row],
    packed: Packing,
    concurrency: int,
    here: int,
) -> Forecast:
    def draw(index: int) -> list[Drawn]:
        return [
            Drawn(params=params, timeline=measured.rates(trial_settings(spec, params, seed)))
            for seed, params in enumerate(_draw(spec, index, spec.search.trials))
        ]

    largest = max(row.memory.thawed for row in rows)
    checkpoint = max(measured.checkpoint_bytes, _CHECKPOINT_BYTES * largest)
    # Besides the best, each trial that runs or waits for its promotion has one, and writes the next; and all
    # may be on the front, where there are several objectives.
    many = spec.search.scheduler.type != "none" or spec.search.objectives
    waiting = spec.search.trials if many else 0
    kept = min(spec.search.trials, spec.checkpoints.keep + concurrency + waiting) + concurrency
    return forecast(
        draw,
        scheduler,
        spec.search.metric,
        source=measured.source,
        concurrency=concurrency,
        nodes=math.ceil(concurrency / max(1, here)),
        gpus_per_trial=spec.resources.most_workers * packed.gpus_per_worker,
        prices=spec.resources.prices,
        startup_s=measured.around_s,
        handover_s=rates.HANDOVER_S,
        disk_bytes=kept * checkpoint + _MODEL_BYTES * largest,
    )


def _draw(spec: SweepSpec, seed: int, count: int) -> list[Mapping[str, Any]]:
    """Parameters of the trials of a made-up sweep: what is tried first, then random draws."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for point in first_points(spec):
        study.enqueue_trial(stored(spec.space, point))
    draw = partial(suggest, spec.space)
    return [draw(study.ask()) for _ in range(count)]


def _gpu_bytes(spec: SweepSpec) -> int | None:
    """Memory of this machine's smallest GPU, where the sweep asks for some and there is one."""
    if not spec.resources.on_gpu:
        return None
    import torch

    found = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return min(found, default=None)


def _fits_here(spec: SweepSpec, packed: Packing) -> int:
    """Trials that this machine holds at a time."""
    resources = spec.resources
    cpus = len(os.sched_getaffinity(0))
    fits = int(cpus / (resources.most_workers * resources.cpus_per_worker) + 1e-6)
    if resources.on_gpu:
        import torch

        gpus = torch.cuda.device_count()
        each = resources.most_workers * packed.gpus_per_worker
        fits = min(fits, gpus * packed.a_gpu if packed.a_gpu > 1 else int(gpus / each + 1e-6))
    return fits
