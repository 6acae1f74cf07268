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
_OWN = frozenset({"run", "submit", "logs", "cluster"})
"""Commands that do not run on the cluster when they are given its address."""


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


def forwarded(arguments: Sequence[str]) -> int | None:
    """Run a command that is given a dashboard's address on that cluster; its exit code.

    None where it is not such a command, and is to be run here.
    """
    command = next((part for part in arguments if not part.startswith("-")), None)
    rest, address = _without_address(arguments)
    if command is None or command in _OWN or address is None:
        return None
    from cluster.jobs.client import Jobs

    if command == "resume":
        raise ValueError(
            "resume: a sweep on a cluster goes on when its file is submitted again (thaw submit)"
        )
    answer = Jobs(address).call(rest)
    print(answer.out, end="")
    print(answer.err, end="", file=sys.stderr)
    return answer.code


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
