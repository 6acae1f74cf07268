"""Sweeps on a cluster that is reached over HTTP: `submit`, `logs`, and any command with --address http://..."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.jobs.package import Submission

Dashboard = Annotated[
    str, typer.Option("--address", help="The cluster's dashboard, such as http://localhost:8265.")
]
_THERE = frozenset(
    {"list", "status", "trials", "best", "export", "doctor"}
    | {"pause", "stop", "cancel", "extend", "enqueue", "clone", "stop-trial"}
)
"""Commands that are run on the cluster when they are given its address."""


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
        if storage is not None and "@" in storage.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "--storage: must not hold a user or password; give the nodes an identity instead"
            )
        jobs = Jobs(address)
        jobs.check_environment()
        jobs.submit(submission, storage)
        again = f"thaw logs {submission.name} --address {address} -f"
        print(f"submitted {submission.name}; follow it with: {again}", file=sys.stderr)
        if not detach:
            _follow(jobs, submission.name, again)

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
        _follow(jobs, name, f"thaw logs {name} --address {address} -f")
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
    if command in ("run", "resume"):
        raise ValueError(
            f"{command}: a sweep on a cluster begins, and goes on, when its file is submitted there "
            f"(thaw submit FILE --address {address})"
        )
    if command not in _THERE:
        return None
    sent = None
    if command == "doctor":
        sweep, overrides, rest = _examined(rest)
        sent = None if sweep is None else read(sweep, overrides)
    elif command == "export":
        _require_lasting(rest)
    from cluster.jobs.client import Jobs

    answer = Jobs(address).call(rest, sent)
    print(answer.out, end="")
    print(answer.err, end="", file=sys.stderr)
    return answer.code


def _examined(rest: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """`doctor` as it is run there: the sweep, its overrides, and what is left to say beside its file."""
    from cluster.jobs.package import SWEEP_FILE

    sweep: str | None = None
    overrides: list[str] = []
    there = ["--address", "auto"]
    parts = iter(rest[rest.index("doctor") + 1 :])
    for part in parts:
        option, equals, value = part.partition("=")
        if option in ("--set", "--storage"):
            value = value if equals else next(parts, "")
            if option == "--set":
                overrides.append(value)
            else:
                there += [option, value]
        elif part.startswith("-") or sweep is not None:
            there.append(part)
        else:
            sweep = part
    return sweep, overrides, ["doctor", *([SWEEP_FILE] if sweep is not None else []), *there]


def _require_lasting(rest: Sequence[str]) -> None:
    """Check that what `export` writes there outlasts the job that writes it."""
    pairs = zip(rest, [*rest[1:], ""], strict=True)
    given = [value for option, value in pairs if option in ("-o", "--output")]
    given += [part.partition("=")[2] for part in rest if part.startswith("--output=")]
    if any("://" not in value and not value.startswith("/") for value in given):
        raise ValueError(
            "--output: is written by the cluster; give an s3:// or gs:// URI, or a path that is mounted there"
        )


def _without_address(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    rest: list[str] = []
    address = None
    parts = iter(arguments)
    for part in parts:
        option, equals, value = part.partition("=")
        if option != "--address":
            rest.append(part)
            continue
        value = value if equals else next(parts, "")
        if not value.startswith(("http://", "https://")):
            return list(arguments), None
        address = value
    return rest, address


def _follow(jobs: object, name: str, again: str) -> None:
    from cluster.jobs.client import Jobs

    assert isinstance(jobs, Jobs)
    try:
        code = jobs.follow(name)
    except KeyboardInterrupt:
        print(f"\nthe sweep goes on; follow it with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    raise typer.Exit(code)
