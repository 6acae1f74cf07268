"""The providers: one file each, one line each in this table."""

from __future__ import annotations

from collections.abc import Callable

from cluster.provision.providers import aws, azure, gcp, kuberay, local
from cluster.provision.spec import ClusterSpec
from cluster.provision.workload import Workload

PROVIDERS: dict[str, Callable[[Workload, ClusterSpec], str]] = {
    "aws": aws.render,
    "gcp": gcp.render,
    "azure": azure.render,
    "kuberay": kuberay.render,
    "local": local.render,
}
"""Name -> the text of its file. Each raises ValueError where the sweep or the cluster does not fit."""
