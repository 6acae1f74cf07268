"""Machines of one's own, reached by SSH."""

from __future__ import annotations

from cluster.provision.launcher import Cloud
from cluster.provision.launcher import render as render_launcher
from cluster.provision.spec import ClusterSpec, need
from cluster.provision.workload import Workload


def render(workload: Workload, spec: ClusterSpec) -> str:
    """A file of Ray's cluster launcher for given machines.

    Raises:
        ValueError: where an address or a user is missing, or the sweep does not fit.
    """
    head = need(spec.head_ip, "head_ip", "local", "192.0.2.10")
    user = need(spec.ssh_user, "ssh_user", "local", "ubuntu")
    return render_launcher(
        workload,
        spec,
        Cloud(
            place="own machines",
            provider={"type": "local", "head_ip": head, "worker_ips": list(spec.worker_ips)},
            ssh_user=user,
        ),
    )
