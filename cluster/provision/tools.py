"""Rendered files handed to the tools that act on them: `ray` and `kubectl`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cluster.provision.text import reason

_MAX_BYTES = 2_000_000  # a ConfigMap, which holds the sweep's file, has a million at most
_INSTALL = {
    "ray": "it comes with Thaw; is the virtual environment active?",
    "kubectl": "see https://kubernetes.io/docs/tasks/tools/",
}


def up(file: Path) -> None:
    """Start a cluster. What `ray up` starts asks for Ray's token, which is made where there is none.

    Raises:
        ValueError: if the file is not a rendered one, or the tool is missing.
        OSError: if the tool fails.
    """
    if _kind(file) == "kubectl":
        _call(["kubectl", "apply", "-f", str(file)])
        return
    _require("ray")
    # Its answer, the token, is not shown; it is a file that only the user reads.
    _call(["ray", "get-auth-token", "--generate"], quiet=True)
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)
    _call(["ray", "up", "--yes", str(file)], {"RAY_AUTH_MODE": "token"})


def down(file: Path) -> None:
    """End a cluster.

    Raises:
        ValueError: if the file is not a rendered one, or the tool is missing.
        OSError: if the tool fails.
    """
    if _kind(file) == "kubectl":
        _call(["kubectl", "delete", "--ignore-not-found", "-f", str(file)])
    else:
        _call(["ray", "down", "--yes", str(file)], {"RAY_AUTH_MODE": "token"})


def _kind(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        documents = [d for d in yaml.safe_load_all(file.read_text()) if isinstance(d, dict)]
    except (OSError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as YAML: {reason(error)}") from error
    if any(d.get("kind") == "RayJob" for d in documents):
        return "kubectl"
    if any("cluster_name" in d for d in documents):
        return "ray"
    raise ValueError(
        f"{file}: is neither a Ray cluster file nor a RayJob; write one with `thaw cluster render`"
    )


def _require(tool: str) -> str:
    beside = Path(sys.executable).with_name(tool)
    found = str(beside) if beside.is_file() else shutil.which(tool)
    if found is None:
        raise ValueError(f"{tool}: is not installed here ({_INSTALL[tool]})")
    return found


def _call(command: Sequence[str], environment: Mapping[str, str] | None = None, quiet: bool = False) -> None:
    program = _require(command[0])
    ended = subprocess.run(
        [program, *command[1:]],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL if quiet else None,
        check=False,
    )
    if ended.returncode:
        raise OSError(f"`{' '.join(command)}` ended with exit code {ended.returncode}")
