"""The file of Ray's cluster launcher: what all clouds have in common."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.connect import NODE_TYPES
from cluster.provision.spec import ClusterSpec, Head, Workers
from cluster.provision.text import block, fill, scalar
from cluster.provision.workload import Workload, node_groups, node_types

SPOT = "ray.io/market-type"
"""Ray's own label of a node that may be taken away (`spot`) or not (`on-demand`)."""

_TOKEN = "~/.ray/auth_token"
_SOURCE = "~/thaw-source"
_SECRETS = "~/.thaw-environment"
_VENV = "~/thaw-venv"
# As here: what is submitted is refused by another one.
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_APT = "sudo apt-get -o DPkg::Lock::Timeout=300"  # a fresh machine may be updating itself


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """What one provider adds."""

    place: str
    """For the head line: `AWS, us-west-2`."""
    provider: Mapping[str, Any]
    ssh_user: str
    node: Callable[[Head | Workers, bool], Mapping[str, Any]] | None = None
    """Configuration of a node; the flag says spot. None where nodes are given machines."""
    head_requirements: tuple[str, ...] = field(default=())
    """What Ray's autoscaler needs on the head to start nodes, and `ray up` here."""
    public_key: bool = False
    """Whether the public half of a key to log in with is asked for as well."""


def render(workload: Workload, spec: ClusterSpec, cloud: Cloud) -> str:
    """The whole file.

    Raises:
        ValueError: where the sweep does not fit on the cluster's nodes.
    """
    groups = node_groups(workload, spec)
    machines = cloud.node is None
    alone = machines and not spec.worker_ips
    types_: dict[str, Any] = {}
    if cloud.node is not None:
        types_["head"] = {
            "node_config": dict(cloud.node(spec.head, False)),
            "resources": {"CPU": 0, "GPU": 0},
            "labels": {SPOT: "on-demand"},
            "min_workers": 0,
            "max_workers": 0,
        }
        for group in groups:
            node = group.node
            types_[group.name] = {
                "node_config": dict(cloud.node(node, node.spot)),
                "resources": {"CPU": node.cpus, "GPU": node.gpus},
                "labels": {SPOT: "spot" if node.spot else "on-demand"},
                "min_workers": 0,
                "max_workers": group.max_nodes,
            }
    types = (
        "# The head is on-demand and holds no trials: its CPUs and GPUs are not offered. Workers come when\n"
        "# a gang waits, and go when they are idle; spot ones may be taken away: Thaw goes on without them.\n"
        f"available_node_types:\n{block(types_, 2)}\n\nhead_node_type: head\n"
    )
    most = len(spec.worker_ips) if machines else sum(group.max_nodes for group in groups)
    mounts = {_TOKEN: _TOKEN}
    source = _directory(spec.install)
    if source is not None:
        mounts[_SOURCE] = source
    if spec.secrets_file is not None:
        mounts[_SECRETS] = spec.secrets_file
    shape = workload.shape
    auth = {"ssh_user": spec.ssh_user or cloud.ssh_user}
    if spec.ssh_private_key is not None:
        auth["ssh_private_key"] = spec.ssh_private_key
        if cloud.public_key:
            auth["ssh_public_key"] = f"{spec.ssh_private_key}.pub"
    client = " ".join(map(shlex.quote, cloud.head_requirements))
    return fill(
        "launcher.yaml",
        {
            "place": cloud.place,
            "sweep": workload.name,
            "shape": shape.describe(),
            "name": spec.name,
            "max_workers": most,
            "idle_minutes": spec.idle_minutes,
            "provider": block(dict(cloud.provider), 2),
            "auth": block(auth, 2),
            "node_types": "" if machines else types,
            "file_mounts": block(mounts, 2),
            "setup_commands": _list(_setup(spec, cloud, source)),
            "head_setup_commands": _list([f"{_VENV}/bin/pip install {client}"] if client else []),
            "client": f"\n# `ray up` needs the cloud's client here too: pip install {client}\n#"
            if client
            else "",
            "head_offers": "its CPUs too, as it is alone"
            if alone
            else "no CPUs, so that no trial runs there",
            "head_start_commands": _list(
                _start(spec, head=True, offers=alone, kinds=None if machines else node_types(groups))
            ),
            "worker_start_commands": _list(_start(spec, head=False, offers=True)),
        },
    )


def _setup(spec: ClusterSpec, cloud: Cloud, source: str | None) -> list[str]:
    wanted = shlex.quote(spec.install or "") if source is None else _SOURCE
    python = (
        f"{_PYTHON} -c 'import ensurepip' || ({_APT} update && {_APT} install -y {_PYTHON} {_PYTHON}-venv)"
    )
    return [
        *([] if cloud.node is None else [python]),  # machines of one's own are left as they are
        f"test -d {_VENV} || {_PYTHON} -m venv {_VENV}",
        f"{_VENV}/bin/pip install {wanted}",
        "grep -q thaw-venv ~/.bashrc || echo 'export PATH=$HOME/thaw-venv/bin:$PATH' >> ~/.bashrc",
        f"chmod 600 {_TOKEN}" + (f" {_SECRETS}" if spec.secrets_file else ""),
    ]


def _start(spec: ClusterSpec, *, head: bool, offers: bool, kinds: str | None = None) -> list[str]:
    ray = f"{_VENV}/bin/ray"
    environment = (
        "export PATH=$HOME/thaw-venv/bin:$PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token"
    )
    if spec.storage is not None:
        environment += f" THAW_STORAGE={shlex.quote(spec.storage)}"
    if kinds is not None:
        environment += f" {NODE_TYPES}={shlex.quote(kinds)}"
    if spec.secrets_file is not None:
        environment = f"set -a; . {_SECRETS}; set +a; {environment}"
    where = (
        "--head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml"
        if head
        else "--address=$RAY_HEAD_IP:6379"
    )
    nothing = "" if offers else " --num-cpus=0 --num-gpus=0"
    return [
        f"{ray} stop",
        f"ulimit -n 65536; {environment}; {ray} start {where}{nothing} --object-manager-port=8076",
    ]


def _directory(install: str | None) -> str | None:
    """The directory with Thaw's source, if it is copied.

    Raises:
        ValueError: if this installation has none.
    """
    if install is None:
        here = Path(__file__).resolve().parents[2]
        if not (here / "pyproject.toml").is_file():
            raise ValueError(
                "cluster.install: is needed, as Thaw's source is not here; give what `pip install` gets on "
                "each node, or a directory with the source"
            )
        return str(here)
    return install if install.startswith((".", "/", "~")) else None


def _list(commands: list[str]) -> str:
    return "\n".join(f"  - {scalar(command)}" for command in commands) or "  []"
