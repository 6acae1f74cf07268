"""`thaw cluster render|up|down`: files that bring a cluster up, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.provision.workload import Workload

File = Annotated[Path, typer.Argument(metavar="FILE", help="What `cluster render` wrote.")]


def cluster_app(workload: Callable[[str, list[str]], Workload]) -> typer.Typer:
    """The group of commands.

    Args:
        workload: reads a sweep's file, with overrides; here, what a sweep is is not known.
    """
    app = typer.Typer(help="Bring a cluster up for a sweep, and down again.", no_args_is_help=True)

    @app.command()
    def render(
        sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or a bundled name.")],
        config: Annotated[Path, typer.Option("--config", help="What the cluster is made of.")] = Path(
            "cluster.yaml"
        ),
        provider: Annotated[
            str | None, typer.Option("--provider", help="aws, gcp, azure, kuberay or local.")
        ] = None,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="A file; standard output where unset.")
        ] = None,
        overrides: Annotated[
            list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a setting of the sweep.")
        ] = [],  # noqa: B006  (typer copies it)
    ) -> None:
        """Write the file that brings a cluster up for a sweep."""
        from cluster.provision import spec as specs
        from cluster.provision.providers import PROVIDERS

        cluster = specs.load(config)
        name = provider or cluster.provider
        if name not in PROVIDERS:
            got = "" if name is None else f", got {name!r}"
            raise ValueError(f"--provider: must be one of {', '.join(PROVIDERS)}{got}")
        text = PROVIDERS[name](workload(sweep, overrides), cluster)
        if output is None:
            print(text, end="")
            return
        output.write_text(text)
        print(output)

    @app.command()
    def up(file: File) -> None:
        """Start the cluster of a rendered file (ray up, or kubectl apply)."""
        from cluster.provision import tools

        tools.up(file)

    @app.command()
    def down(file: File) -> None:
        """End the cluster of a rendered file, with all its nodes (ray down, or kubectl delete)."""
        from cluster.provision import tools

        tools.down(file)

    return app
