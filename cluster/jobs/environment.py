"""Whether a cluster's Python can run what is sent: versions there against what Thaw needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata

from packaging.requirements import Requirement

_PREFIX = "thaw-environment "


def needed() -> list[str]:
    """Thaw's requirements, without those of extras."""
    found = metadata.requires("thaw") or []
    return [text for text in found if "extra ==" not in text]


def probe(names: Sequence[str]) -> str:
    """A Python program of one line that prints the versions of `python` and of packages."""
    return (
        "import json, sys; from importlib import metadata; "
        "there = [d for d in metadata.distributions() if d.metadata['Name']]; "
        "found = {d.metadata['Name'].lower(): d.version for d in there}; "
        f"names = {json.dumps([name.lower() for name in names])}; "
        f"print({_PREFIX!r} + json.dumps("
        "{'python': '.'.join(map(str, sys.version_info[:2])), **{n: found.get(n) for n in names}}))"
    )


def read(output: str) -> dict[str, str | None]:
    """What the program of `probe` printed, among other lines.

    Raises:
        ValueError: if it is not there.
    """
    for line in output.splitlines():
        if line.startswith(_PREFIX):
            return dict(json.loads(line.removeprefix(_PREFIX)))
    raise ValueError(f"the cluster's Python could not be asked for its packages: {output[-300:].strip()}")


def problems(found: Mapping[str, str | None], requirements: Sequence[str]) -> list[str]:
    """What does not fit, one line each. Python must be the same minor version: Ray sends pickled code."""
    here = ".".join(map(str, sys.version_info[:2]))
    lines = []
    if found.get("python") != here:
        lines.append(f"python: {here} is needed, as here; the cluster has {found.get('python')}")
    for text in requirements:
        wanted = Requirement(text)
        has = found.get(wanted.name.lower())
        if has is None:
            lines.append(f"{wanted.name}: {wanted.specifier} is needed; the cluster has none")
        elif not wanted.specifier.contains(has, prereleases=True):
            lines.append(f"{wanted.name}: {wanted.specifier} is needed; the cluster has {has}")
    return lines
