"""Thaw's command line: parses, composes, prints. `python launch.py --help`."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="thaw",
    help="Distributed hyperparameter search for fine-tuning transformers.",
    epilog="With --debug, any command shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Storage = Annotated[
    str, typer.Option("--storage", help="Directory that holds the sweeps.", envvar="THAW_STORAGE")
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a setting of the file; repeatable.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="A Ray cluster; without one, a local one starts and stops with the sweep."
    ),
]
Name = Annotated[str, typer.Argument(help="The sweep's name.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@app.command()
def run(
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="A sweep file, or a bundled name such as quickstart.")
    ],
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    storage: Storage = "./runs",
    address: Address = None,
) -> None:
    """Run a sweep, and export its best model."""
    from search import loading, preflight

    spec = loading.load(sweep, overrides)
    place = preflight.local_storage(storage)
    facts = preflight.check(spec)
    _run(spec, facts, place, address)


@app.command()
def resume(name: Name, storage: Storage = "./runs", address: Address = None) -> None:
    """Go on with a sweep that was interrupted."""
    from search import preflight
    from search.sweep import find

    place = preflight.local_storage(storage)
    spec = find(name, place).spec
    _run(spec, preflight.check(spec), place, address)


@app.command()
def trials(
    name: Name,
    storage: Storage = "./runs",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, one line a trial.")] = False,
) -> None:
    """Show a sweep's trials."""
    from search.results import leaderboard

    if as_json and as_csv:
        raise ValueError("--json and --csv: both were given; choose one")
    records, metric = _read(name, storage)
    rows = leaderboard.rows(records, metric.name, metric.goal)
    if as_json:
        print(leaderboard.to_json(rows))
    elif as_csv:
        print(leaderboard.to_csv(rows), end="")
    else:
        console = _console()
        console.print(leaderboard.table(records, metric.name, metric.goal, title=name, width=console.width))


@app.command()
def best(name: Name, storage: Storage = "./runs", as_json: Json = False) -> None:
    """Show a sweep's best trial."""
    from search.results import leaderboard

    records, metric = _read(name, storage)
    if as_json:
        print(leaderboard.to_json(leaderboard.best_row(records, metric.name, metric.goal)))
    else:
        print(leaderboard.best_text(records, metric.name, metric.goal))


@app.command()
def export(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new directory.")],
    trial: Annotated[int | None, typer.Option("--trial", help="The trial; the best one where unset.")] = None,
    storage: Storage = "./runs",
) -> None:
    """Write a trial's best checkpoint as a Hugging Face model directory."""
    from search import preflight
    from search import sweep as sweeps

    found = sweeps.find(name, preflight.local_storage(storage))
    study = found.read()
    record = study.best() if trial is None else study.trial(trial)
    if record is None:
        raise ValueError(f"{name}: no trial has a value of {study.metric} yet, so there is nothing to export")
    sweeps.export(found, record, output.absolute())
    print(output)


@app.command()
def schema() -> None:
    """Print the JSON schema of sweep files, for editors."""
    from search.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
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
        print(picture(planned, blocks, epochs, width=min(_console().width, 100)))


@app.command()
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
        console = _console()
        console.print(estimates.table(found))
        console.print(estimates.limit(found), highlight=False, soft_wrap=True)


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


def _run(spec: Any, facts: Any, place: Path, address: str | None) -> None:
    from cluster.capacity import GangShape, require_fit
    from cluster.connect import connected, local_node
    from search import preflight
    from search import sweep as sweeps
    from search.progress import Progress
    from search.results import leaderboard

    resources = spec.resources
    shape = GangShape(
        workers=resources.workers,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
    )
    if address is None:
        require_fit([local_node()], shape)
    sweeps.check_name(spec, place, facts)
    preflight.check_writable(place / spec.name)
    console = _console()
    metric = spec.search.metric
    made = sweeps.Sweep(spec=spec, directory=place / spec.name)
    where: list[str] = []
    warnings: list[str] = []
    interrupted = False
    try:
        _catch_interrupts()
        if not sweeps.is_finished(made):
            with Progress(console=console) as progress, connected(address) as nodes:
                _catch_interrupts()  # Ray has put its own in place
                fits = require_fit(nodes, shape)
                made = sweeps.create(spec, place, facts)
                try:
                    where, warnings = sweeps.run(made, facts=facts, fits=fits, progress=progress)
                except ValueError as error:  # a fault of ours: exit code 2 would say that nothing was started
                    raise RuntimeError("the sweep broke off") from error
    except KeyboardInterrupt:
        interrupted = True
    if interrupted and not made.ledger.exists():
        console.print("interrupted; nothing had started")
        raise typer.Exit(130)
    for line in warnings:
        print(line, file=sys.stderr)
    records = made.read().trials()
    console.print(leaderboard.table(records, metric.name, metric.goal, title=spec.name, width=console.width))
    if interrupted:
        console.print(f"interrupted; go on with: thaw resume {spec.name}{_where(place)}", highlight=False)
        raise typer.Exit(130)
    champion = made.read().best()
    for line in where:
        console.print(f"results    {line}", highlight=False, soft_wrap=True)
    if champion is None:
        print("no trial has a value; see the errors above", file=sys.stderr)
        raise typer.Exit(1)
    try:
        exported = sweeps.export_best(made, champion)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    console.print(f"best model {exported}", highlight=False, soft_wrap=True)
    console.print(
        f"\nnext:  thaw best {spec.name}{_where(place)}\n"
        f"       thaw trials {spec.name}{_where(place)} --json\n"
        f"       thaw export {spec.name}{_where(place)} --trial {champion.number} -o DIR",
        highlight=False,
        soft_wrap=True,
    )


def _catch_interrupts() -> None:
    """Turn the first Ctrl-C or SIGTERM into a tidy end, and ignore those that come while it lasts."""

    def interrupt(*_: object) -> None:
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, signal.SIG_IGN)
        raise KeyboardInterrupt

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, interrupt)


def _read(name: str, storage: str) -> tuple[Any, Any]:
    """A sweep's records and its metric."""
    from search import preflight
    from search.sweep import find

    found = find(name, preflight.local_storage(storage))
    return found.read().trials(), found.spec.search.metric


def _console() -> Any:
    from rich.console import Console

    return Console()


def _where(place: Path) -> str:
    return "" if place == Path("runs").absolute() else f" --storage {shlex.quote(str(place))}"


def main() -> None:
    """Run the command line. A user's mistake is one message and exit code 2, the machine's is 1."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except ValueError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a file that may not be read
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
