"""Commands that say what a sweep will take, before it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from search.commands.options import Json, Overrides, Storage, SweepFile, console

if TYPE_CHECKING:
    from rich.table import Table

    from search.planning import Plan


def plan(
    sweep: SweepFile,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    storage: Storage = "./runs",
    probe: Annotated[
        bool, typer.Option("--probe", help="Forecast from a short measurement of this machine.")
    ] = False,
    earlier: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="Forecast from an earlier sweep's figures.")
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option("--concurrent", min=1, help="Trials at a time; what fits on this machine where unset."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a sweep will do and take, before anything is spent."""
    from search import forecasts, loading, mirror, planning, preflight
    from search.results import leaderboard
    from training.data import cache_root

    if probe and earlier is not None:
        raise ValueError("--probe and --from: both were given; choose one")
    spec = loading.load(sweep, overrides)
    place = mirror.open_storage(storage)
    facts = preflight.check(spec)
    found = planning.plan(spec, facts, place, probe=probe, earlier=earlier, concurrent=concurrent)
    if found.forecast is not None:
        forecasts.keep(spec, cache_root(), found.forecast.to_json())
    if as_json:
        print(leaderboard.to_json(found.document()))
        return
    _show(found)


def _show(found: Plan) -> None:
    from search import memory
    from search.results.text import number

    screen = console()
    spec, facts, search = found.spec, found.facts, found.spec.search.resolved()
    rungs = ", ".join(number(rung) for rung in found.rungs)
    lines = {
        "sweep": f"{spec.name}: {search.trials} trials of {number(spec.training.epochs)} epochs, by "
        f"{search.metric.name} ({search.metric.goal})",
        "data": f"{facts.num_train:,} training and {facts.num_validation:,} validation examples, "
        f"labels {', '.join(facts.label_names)}",
        "search": f"sampler {search.sampler.type}, scheduler {search.scheduler.type}"
        + (f" with rungs at epochs {rungs}" if rungs else ""),
    }
    for index, point in enumerate(found.points):
        lines[f"trial {index}"] = ", ".join(f"{path} {number(value)}" for path, value in point.items())
    for source in found.sources:
        lines[f"knows {source.name}"] = f"{len(source.prior)} trials" + (
            f"; {source.outside} lie outside of this space" if source.outside else ""
        )
    packing = found.packing
    if packing.a_gpu:
        lines["a GPU holds"] = f"{packing.a_gpu} trial{'s' * (packing.a_gpu != 1)} at a time" + (
            f": {packing.reason}" if packing.reason else ""
        )
    _print(lines)
    print()
    screen.print(_phases(found, screen.width))
    screen.print(memory.limit(found.rows), highlight=False, soft_wrap=True)
    print()
    if found.forecast is None:
        print("no forecast: add --probe for a short measurement of this machine, or --from NAME")
        return
    _print(_forecast(found))
    for line in found.warnings:
        print(f"warning: {line}")


def _phases(found: Plan, width: int) -> Table:
    """What each phase trains, and needs in memory."""
    from search.memory import megabytes
    from search.results.text import Column, grid

    rows = found.rows
    columns = [
        Column(header="schedule", justify="left", cells=[row.schedule for row in rows]),
        Column(header="phase", justify="left", cells=[row.phase for row in rows], drop=2),
        Column(header="thawed", justify="left", cells=[row.thawed for row in rows], drop=1),
        Column(header="trainable", cells=[f"{row.memory.thawed:,}" for row in rows]),
        Column(header="MB a worker", cells=[megabytes(row.memory.device) for row in rows]),
        Column(header="MB on host", cells=[megabytes(row.memory.host) for row in rows]),
    ]
    return grid(columns, width=width)


def _forecast(found: Plan) -> dict[str, str]:
    from search.results.text import duration

    forecast = found.forecast
    assert forecast is not None
    lines = {
        "forecast": f"from {'a probe' if forecast.source == 'probe' else forecast.source} in "
        f"{duration(found.measuring_s)}, {forecast.concurrency} trials at a time",
        "wall-clock": f"{duration(forecast.wall_s)} ({duration(forecast.wall_low_s)} to "
        f"{duration(forecast.wall_high_s)} in nine of ten)",
        "training": f"{forecast.epochs:.1f} of {forecast.full_epochs:.1f} epochs; {forecast.complete:.1f} of "
        f"{forecast.trials} trials run to their end",
        "GPU-hours": f"{forecast.gpu_hours:.2f}",
    }
    if forecast.cost is not None:
        lines["cost"] = f"{forecast.cost:.2f}"
    lines["disk"] = f"{forecast.disk_bytes / 1e6:,.0f} MB at most"
    return lines


def _print(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for key, value in lines.items():
        print(f"{key:<{width}}  {value}")
