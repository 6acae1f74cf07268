"""Commands that look at a sweep file, or a part of one, before anything runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from search.commands.options import Json, Overrides, console


def schema() -> None:
    """Print the JSON schema of sweep files, for editors."""
    from search.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


def schedule(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An unfreezing schedule, such as gradual.")],
    blocks: Annotated[int, typer.Option("--blocks", min=1, max=1000, help="Blocks of the model.")] = 6,
    epochs: Annotated[float, typer.Option("--epochs", help="Length of the training.")] = 3.0,
    depth: Annotated[int | None, typer.Option("--depth", help="Blocks that thaw (unfreezing.depth).")] = None,
    points: Annotated[
        str | None, typer.Option("--points", metavar="X,Y,...", help="When blocks thaw (unfreezing.points).")
    ] = None,
    interval: Annotated[
        float | None, typer.Option("--interval", help="Epochs between two draws of lisa.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="A trial's seed, for lisa.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw an unfreezing schedule: which layers train when."""
    from training.schedules import describe, phases
    from training.schedules.picture import picture

    unfreezing = _unfreezing(name, epochs, depth=depth, points=points, interval=interval)
    try:
        planned = phases(unfreezing, blocks, epochs, seed)
    except ValueError as error:
        raise ValueError(str(error).replace("unfreezing.", "--")) from error
    if as_json:
        drawn = [{**asdict(phase), "thawed": describe(phase, blocks)} for phase in planned]
        document = {"schedule": name, "num_blocks": blocks, "epochs": epochs, "seed": seed, "phases": drawn}
        print(json.dumps(document, indent=2))
    else:
        print(picture(planned, blocks, epochs, width=min(console().width, 100)))


def memory(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or a bundled name.")],
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    as_json: Json = False,
) -> None:
    """Estimate the memory of each phase that a sweep can draw, before anything starts."""
    from search import loading
    from search import memory as estimates

    found = estimates.rows(loading.load(sweep, overrides))
    if as_json:
        print(json.dumps(estimates.to_json(found), indent=2))
    else:
        screen = console()
        screen.print(estimates.table(found, width=screen.width))
        screen.print(estimates.limit(found), highlight=False, soft_wrap=True)


def _unfreezing(name: str, epochs: float, *, points: str | None, **given: Any) -> Any:
    """The settings of a schedule as options give them, checked as in a sweep file."""
    from search.problems import hint
    from search.spec import LEAVES
    from training.config import UnfreezingConfig
    from training.schedules import SCHEDULES

    drawable = [known for known in SCHEDULES if known != "phases"]
    if name == "phases":
        raise ValueError(f"phases: its phases are those that a sweep file lists; draw {', '.join(drawable)}")
    if name not in drawable:
        raise ValueError(f"{name}: unknown schedule{hint(name, drawable)}")
    wanted = {"points": None if points is None else _numbers("--points", points), **given}
    settings = {option: value for option, value in wanted.items() if value is not None}
    paths = {f"unfreezing.{option}": value for option, value in settings.items()} | {"epochs": epochs}
    for path, value in paths.items():
        option = path.removeprefix("unfreezing.")
        checked, complaint = LEAVES[path].check(value)
        if complaint:
            raise ValueError(f"--{option}: {complaint}".replace(": [", "[", 1))  # --points[0]: ...
        settings[option] = checked
    del settings["epochs"]
    return UnfreezingConfig(schedule=name, **settings)  # type: ignore[arg-type]


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{option}: must be numbers with commas between them, such as 0.2,0.6, got {text!r}"
        ) from None
