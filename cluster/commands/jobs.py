"""Sweeps on a cluster that is reached over HTTP: `submit`, `logs`, and any command with --address http://..."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.jobs.client import Jobs
    from cluster.jobs.package import Submission

Dashboard = Annotated[
    str, typer.Option("--address", help="The cluster's dashboard, such as http://localhost:8265.")
]
_THERE = frozenset(
    {"list", "status", "trials", "best", "export", "doctor"}
    | {"pause", "stop", "cancel", "extend", "enqueue", "clone", "stop-trial"}
)
"""Commands that are run on the cluster when they are given its address."""
# A driver that was told to pause tidies up before its job has ended.
_END_S = 60.0


def submit_command(read: Callable[[str, list[str]], Submission]) -> Callable[..., None]:
    """The command `submit`.

    Args:
        read: reads a sweep's file, with overrides, as it is to be sent; here, what a sweep is is not known.
    """

    def submit(
        sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or a bundled name.")],
        address: Dashboard,
        overrides: Annotated[
            list[str],
            typer.Option("--set", metavar="PATH=VALUE", help="Override a setting of the file; repeatable."),
        ] = [],  # noqa: B006  (typer copies it)
        storage: Annotated[
            str | None,
            typer.Option(
                "--storage", help="Where the cluster keeps sweeps; its own THAW_STORAGE where unset."
            ),
        ] = None,
        detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    ) -> None:
        """Send a sweep to a cluster, and follow it."""
        from cluster.jobs.client import Jobs

        submission = read(sweep, overrides)
        _require_no_password([storage or ""])
        jobs = Jobs(address)
        jobs.check_environment()
        jobs.submit(submission, storage)
        again = f"thaw logs {submission.name} --address {address} -f"
        print(f"submitted {submission.name}; follow it with: {again}", file=sys.stderr)
        if not detach:
            raise typer.Exit(_follow(jobs, submission.name, again))

    return submit


def logs(
    name: Annotated[str, typer.Argument(help="The sweep's name.")],
    address: Dashboard,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sweep ends.")] = False,
) -> None:
    """Show what a submitted sweep prints."""
    from cluster.jobs.client import Jobs

    jobs = Jobs(address)
    text = jobs.log(name)
    if follow:
        raise typer.Exit(_follow(jobs, name, f"thaw logs {name} --address {address} -f"))
    print(text, end="")


def forwarded(arguments: Sequence[str], read: Callable[[str, list[str]], Submission]) -> int | None:
    """Run a command that is given a dashboard's address on that cluster; its exit code.

    None where it is not such a command, and is to be run here.

    Args:
        read: reads a sweep's file, with overrides, as it is to be sent.
    """
    rest, address = _without_address(arguments)
    command = next((part for part in rest if not part.startswith("-")), None)
    if address is None:
        return None
    _require_no_password(rest)
    if command == "run":
        raise ValueError(
            f"run: a sweep on a cluster begins when its file is submitted there "
            f"(thaw submit FILE --address {address})"
        )
    if command == "resume":
        return _resume(rest, address)
    if command not in _THERE:
        return None
    from cluster.jobs.client import Jobs
    from cluster.jobs.package import SWEEP_FILE

    sent = None
    storage = next(_values(rest, "--storage"), None)
    if command == "doctor":
        sweep, overrides, others = _taken_apart(rest, command)
        rest = [command, *([SWEEP_FILE] if sweep is not None else []), "--address", "auto", *others]
        sent = None if sweep is None else read(sweep, overrides)
    elif command == "export":
        _require_lasting(rest)
    answer = Jobs(address).call(rest, storage, sent)
    print(answer.out, end="")
    print(answer.err, end="", file=sys.stderr)
    return answer.code


def resubmit(submission: Submission, storage: str) -> None:
    """Send a sweep of this cluster's storage to this cluster, on which this runs as a job."""
    from cluster.jobs.client import Jobs

    Jobs("auto").submit(submission, storage, patience_s=_END_S)
    print(f"sweep {submission.name} goes on")


def _resume(rest: Sequence[str], address: str) -> int:
    """Let a sweep of a cluster go on there, and follow it."""
    from cluster.jobs.client import Jobs

    name, _, _ = _taken_apart(rest, "resume")
    there = [part for part in rest if part != "--detach"]
    jobs = Jobs(address)
    jobs.check_environment()
    answer = jobs.call([*there, "--as-job"], next(_values(rest, "--storage"), None))
    print(answer.out, end="", file=sys.stderr)
    print(answer.err, end="", file=sys.stderr)
    if answer.code != 0 or name is None or len(there) < len(rest) or not jobs.knows(name):
        return answer.code
    return _follow(jobs, name, f"thaw logs {name} --address {address} -f")


def _parts(arguments: Sequence[str], *options: str) -> Iterator[tuple[str | None, str]]:
    """A command line's parts: with its name the value of one of `options`, which all take one; else None."""
    parts = iter(arguments)
    for part in parts:
        option, equals, value = part.partition("=")
        if option in options:
            yield option, value if equals else next(parts, "")
        else:
            yield None, part


def _values(arguments: Sequence[str], *options: str) -> Iterator[str]:
    """What a command line gives to `options`."""
    return (value for option, value in _parts(arguments, *options) if option is not None)


def _taken_apart(rest: Sequence[str], command: str) -> tuple[str | None, list[str], list[str]]:
    """The sweep that a command is given, its overrides, and all else that it is given."""
    sweep: str | None = None
    overrides: list[str] = []
    others: list[str] = []
    for option, part in _parts(rest[rest.index(command) + 1 :], "--set", "--storage"):
        if option == "--set":
            overrides.append(part)
        elif option is not None:
            others += [option, part]
        elif part.startswith("-") or sweep is not None:
            others.append(part)
        else:
            sweep = part
    return sweep, overrides, others


def _require_no_password(parts: Sequence[str]) -> None:
    """Check that no URI has one: what a job is given is seen by all who see the cluster."""
    if any("@" in part.partition("://")[2].partition("/")[0] for part in parts):
        raise ValueError("--storage: must not hold a user or password; give the nodes an identity instead")


def _require_lasting(rest: Sequence[str]) -> None:
    """Check that what `export` writes there outlasts the job that writes it."""
    given = _values(rest, "-o", "--output")
    if any("://" not in value and not value.startswith("/") for value in given):
        raise ValueError(
            "--output: is written by the cluster; give an s3:// or gs:// URI, or a path that is mounted there"
        )


def _without_address(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """A command line without the address of a dashboard, and that."""
    addresses = list(_values(arguments, "--address"))
    if not all(address.startswith(("http://", "https://")) for address in addresses):
        return list(arguments), None
    rest = [part for option, part in _parts(arguments, "--address") if option is None]
    return rest, addresses[-1] if addresses else None


def _follow(jobs: Jobs, name: str, again: str) -> int:
    """Print what a sweep's driver does until it ends; its exit code."""
    try:
        return jobs.follow(name)
    except KeyboardInterrupt:
        print(f"\nthe sweep goes on; follow it with: {again}", file=sys.stderr)
        return 130
