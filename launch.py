"""Thaw's command line: registers the commands, composes search and cluster. `python launch.py --help`."""

from __future__ import annotations

import atexit
import contextlib
import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands import doctor, jobs, provisioning
from search.commands import cleaning, life, planning, reading, sketching, watching
from search.commands.options import Address, Json, Name, Overrides, Storage, SweepFile, console, where

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.capacity import GangShape
    from cluster.doctor.facts import Brought
    from cluster.jobs.package import Submission
    from cluster.provision.workload import Workload
    from search.budget import Spent
    from search.session import Outcome
    from search.sweep import Sweep

app = typer.Typer(
    name="thaw",
    help="Distributed hyperparameter search for fine-tuning transformers.",
    epilog="With --debug, any command shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def run(
    sweep: SweepFile,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    storage: Storage = "./runs",
    address: Address = None,
    keep_data: Annotated[
        bool,
        typer.Option("--keep-data", help="Copy local data into the sweep, where its place is not to last."),
    ] = False,
) -> None:
    """Run a sweep, and export its best model."""
    from search import loading, mirror, preflight

    spec = loading.load(sweep, overrides)
    place = mirror.open_storage(storage)
    facts = preflight.check(spec)
    _run(spec, facts, place, address, passing=Path(sweep).resolve().parent if keep_data else None)


def resume(
    name: Name,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    storage: Storage = "./runs",
    address: Address = None,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="On a cluster that is reached over HTTP: do not wait for its end."),
    ] = False,
    as_job: Annotated[
        bool, typer.Option("--as-job", hidden=True, help="As a job of the cluster on which this runs.")
    ] = False,
) -> None:
    """Go on with a sweep that was interrupted, paused, stopped, cancelled or extended."""
    from search import keeping, loading, mirror, preflight
    from search import sweep as sweeps
    from search.presence import Presence

    if detach:
        raise ValueError(
            "--detach: needs the --address of a cluster's dashboard, such as http://localhost:8265"
        )
    place = mirror.open_storage(storage)
    sweep = sweeps.find(name, place)
    presence = Presence(sweep.directory)
    if presence.driver() is not None and not overrides:
        life.go_on(name, storage)
        return
    begun = keeping.kept(sweep.spec, sweep.directory)
    spec = loading.loads(loading.to_yaml(begun), overrides, source=name)
    if as_job:
        presence.check()
        sweeps.check_name(spec, place)
        jobs.resubmit(_packed(spec, sweep.directory.resolve()), storage)
    else:
        _run(spec, preflight.check(spec), place, address)


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sweep ends.")] = False,
    trial: Annotated[
        int | None, typer.Option("--trial", help="The metrics of this trial, in place of the driver's log.")
    ] = None,
    storage: Storage = "./runs",
    address: Annotated[
        str | None, typer.Option("--address", help="The dashboard of a cluster that it was submitted to.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a sweep's driver did, or what one trial reported."""
    if address is None:
        watching.logs(name, follow=follow, trial=trial, storage=storage, as_json=as_json)
    elif trial is not None or as_json:
        raise ValueError("--address: the log of a submitted sweep has neither --trial nor --json")
    else:
        jobs.logs(name, address, follow)


@contextlib.contextmanager
def _brought(name: str | None, overrides: list[str], storage: str) -> Iterator[Brought]:
    """What `doctor` tries for a sweep, or for any."""
    from cluster.doctor.facts import Brought, Need
    from search import loading, mirror
    from search.examination import examination
    from training.probes import all_reduce

    spec = loading.load(name, overrides) if name else None
    with examination(spec, mirror.open_storage(storage)) as wanted:
        shape = _shape(spec) if spec else None
        need = Need(shape=shape, disk_bytes=wanted.disk_bytes, storage_free_bytes=wanted.storage_free_bytes)
        yield Brought(probes=wanted.probes, reduce=all_reduce, tracking=wanted.tracking, need=need)


def _shape(spec: Any, gpus_per_worker: float | None = None) -> GangShape:
    """What a gang asks for; a whole GPU a worker where the share is still to be decided."""
    from cluster.capacity import GangShape

    resources = spec.resources
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if resources.gpus_per_worker == "auto" else resources.gpus_per_worker
    return GangShape(
        workers=resources.most_workers,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        fewest_workers=resources.fewest_workers,
    )


def _run(spec: Any, facts: Any, place: Path, address: str | None, *, passing: Path | None = None) -> None:
    """Check that the sweep may run here, run what is left of it, and say what came of it.

    Args:
        passing: a directory that will not last; data in it is to be kept with the sweep.
    """
    from cluster.admission import admitted
    from cluster.capacity import require_fit
    from cluster.connect import connected, local_node, possible_nodes
    from cluster.gpus import smallest_here, smallest_in_cluster
    from search import keeping, packing, preflight
    from search import sweep as sweeps
    from search.presence import Presence, Taken
    from search.progress import Progress

    if address is None:
        require_fit([local_node()], _shape(spec, packing.decided(spec, smallest_here)))
    changes = sweeps.check_name(spec, place, facts)
    Presence(place / spec.name).check()
    preflight.check_writable(place / spec.name)
    screen = console()
    made = sweeps.Sweep(spec=spec, directory=place / spec.name)
    lost = made.repair()
    if lost is not None:
        print(f"warning: {lost}", file=sys.stderr)
    for line in changes:
        screen.print(f"changed    {line}", highlight=False, soft_wrap=True)
    outcome = None
    interrupted = False
    finished = not changes and sweeps.is_finished(made)
    spent = None if finished else sweeps.used_up(made)
    if spent is not None and changes:
        sweeps.create(spec, place, facts)  # takes them over
    try:
        _catch_interrupts()
        if not finished and spent is None:
            resources = spec.resources
            with contextlib.ExitStack() as stack:
                progress = stack.enter_context(Progress(console=screen))
                stack.enter_context(connected(address))
                _catch_interrupts()  # Ray has put its own in place
                gpus = packing.decided(spec, smallest_in_cluster)
                shape = _shape(spec, gpus)
                allowed = stack.enter_context(
                    admitted(
                        spec.name, shape, address, priority=resources.priority, share=resources.max_gangs
                    )
                )
                fits = require_fit(possible_nodes(), shape)
                made = sweeps.create(spec, place, facts)
                if passing is not None:
                    keeping.keep(spec, passing, made.directory)
                from search import session  # Ray comes in here

                try:
                    outcome = session.run(
                        made,
                        facts=facts,
                        fits=fits,
                        gpus_per_worker=gpus,
                        progress=progress,
                        allowed=allowed,
                    )
                except Taken:
                    raise
                except ValueError as error:  # a fault of ours: exit code 2 would say that nothing was started
                    raise RuntimeError("the sweep broke off") from error
    except KeyboardInterrupt:
        interrupted = True
    if interrupted and not made.begun:
        screen.print("interrupted; nothing had started")
        raise typer.Exit(130)
    _conclude(made, screen, outcome, spent, interrupted)


def _conclude(
    made: Sweep, screen: Console, outcome: Outcome | None, spent: Spent | None, interrupted: bool
) -> None:
    """Say how a sweep stands after a sitting, and export its best model where it has come to an end.

    Args:
        outcome: how the sitting ended; None where it was cut off, or nothing was left to run.
        spent: the budget that let nothing start, if one did.
    """
    from search import sweep as sweeps
    from search.life import Wanted
    from search.results import leaderboard

    spec, place, metric = made.spec, made.directory.parent, made.spec.search.metric
    for line in outcome.warnings if outcome else []:
        print(line, file=sys.stderr)
    study = made.read()
    table = leaderboard.table(study.trials(), metric.name, metric.goal, title=spec.name, width=screen.width)
    screen.print(table)
    left = {Wanted.PAUSE: "paused", Wanted.CANCEL: "cancelled"}.get(outcome.wanted) if outcome else None
    if state := "interrupted" if interrupted else left:
        hint = f"{state}; go on with: thaw resume {spec.name}{where(place)}"
        screen.print(hint, highlight=False, soft_wrap=True)
        raise typer.Exit(130)
    if outcome is not None and outcome.wanted is not Wanted.RUN:
        screen.print(f"stopped before its last trial: {outcome.reason}", highlight=False, soft_wrap=True)
    if spent is not None:
        more = f"thaw resume {spec.name} --set {spent.budget}=VALUE{where(place)}"
        screen.print(f"nothing started: {spent.reason}; go on with: {more}", highlight=False, soft_wrap=True)
    champion = study.best()
    for line in outcome.results if outcome else []:
        screen.print(f"results    {line}", highlight=False, soft_wrap=True)
    if champion is None:
        print("no trial has a value; see the errors above", file=sys.stderr)
        raise typer.Exit(1)
    try:
        exported = sweeps.export_best(made, champion)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    screen.print(f"best model {exported}", highlight=False, soft_wrap=True)
    screen.print(
        f"\nnext:  thaw best {spec.name}{where(place)}\n"
        f"       thaw trials {spec.name}{where(place)} --json\n"
        f"       thaw export {spec.name}{where(place)} --trial {champion.number} -o DIR",
        highlight=False,
        soft_wrap=True,
    )


def _workload(sweep: str, overrides: list[str]) -> Workload:
    """A sweep as a cluster sees it."""
    from cluster.provision.workload import Workload
    from search import loading

    spec = loading.load(sweep, overrides)
    resources, trials, data = spec.resources, spec.search.trials, spec.data
    return Workload(
        name=spec.name,
        file=loading.to_yaml(spec),
        shape=_shape(spec),
        gangs=trials if resources.max_concurrent == "auto" else min(trials, resources.max_concurrent),
        local_files=tuple(str(p) for p in (data.train, data.validation, data.test) if p and Path(p).exists()),
    )


def _submission(sweep: str, overrides: list[str]) -> Submission:
    """A sweep's file as it is sent to a cluster."""
    from search import loading

    return _packed(loading.load(sweep, overrides))


def _packed(spec: Any, within: Path | None = None) -> Submission:
    """A sweep as it is sent to a cluster, with the data that lies here, or only with what is `within`."""
    from cluster.jobs.package import Submission
    from search.portable import portable

    text, files = portable(spec, within)
    return Submission(name=spec.name, text=text, files=files)


def _catch_interrupts() -> None:
    """Turn the first Ctrl-C or SIGTERM into a tidy end, and ignore those that come while it lasts."""

    def interrupt(*_: object) -> None:
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, signal.SIG_IGN)
        raise KeyboardInterrupt

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, interrupt)


COMMANDS = (
    run,
    resume,
    reading.trials,
    reading.best,
    reading.export,
    sketching.schema,
    sketching.schedule,
    sketching.memory,
    planning.plan,
    cleaning.gc,
    jobs.submit_command(_submission),
    watching.list_,
    watching.status,
    logs,
    life.pause,
    life.stop,
    life.cancel,
    life.extend,
    life.enqueue,
    life.stop_trial,
    life.clone,
    doctor.doctor_command(_brought),
)
"""Every command, in the order of the help."""

for command in COMMANDS:
    app.command(name=command.__name__.strip("_").replace("_", "-"))(command)
app.add_typer(provisioning.cluster_app(_workload), name="cluster")


def main() -> None:
    """Run the command line. A user's mistake is one message and exit code 2, the machine's is 1."""
    # The last collection of a process goes through all that it imported: a second after torch, for nothing.
    atexit.register(gc.freeze)
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        try:
            code = jobs.forwarded(sys.argv[1:], _submission)
            app() if code is None else sys.exit(code)
        finally:
            if "search.mirror" in sys.modules:  # what a command wrote beside a sweep in an object store
                sys.modules["search.mirror"].settle()
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
