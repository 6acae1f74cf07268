"""Google Compute Engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.provision.launcher import Cloud
from cluster.provision.launcher import render as render_launcher
from cluster.provision.spec import ClusterSpec, Head, Workers, need
from cluster.provision.workload import Workload

_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu128-ubuntu-2204-nvidia-570"


def render(workload: Workload, spec: ClusterSpec) -> str:
    """A file of Ray's cluster launcher for Compute Engine."""
    region = need(spec.region, "region", "gcp", "us-west1")
    project = need(spec.project, "project", "gcp", "my-project")

    def node(kind: Head | Workers, spot: bool) -> Mapping[str, Any]:
        default = "n2-standard-2" if isinstance(kind, Head) else None
        disk = {"diskSizeGb": kind.disk_gb, "sourceImage": spec.machine_image or _IMAGE}
        config: dict[str, Any] = {
            "machineType": need(kind.type or default, "workers.type", "gcp", "g2-standard-8"),
            "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}],
        }
        if spec.instance_profile is not None:
            scopes = ["https://www.googleapis.com/auth/cloud-platform"]
            config["serviceAccounts"] = [{"email": spec.instance_profile, "scopes": scopes}]
        scheduling: dict[str, Any] = {}
        if spot:
            scheduling["preemptible"] = True
        if isinstance(kind, Workers) and kind.gpus:  # GPUs cannot be moved while they run
            scheduling["onHostMaintenance"] = "TERMINATE"
        if scheduling:
            config["scheduling"] = [{key: value} for key, value in scheduling.items()]
        return config

    zone = spec.zones[0] if spec.zones else f"{region}-a"
    return render_launcher(
        workload,
        spec,
        Cloud(
            place=f"Google Cloud, {zone}",
            provider={"type": "gcp", "region": region, "availability_zone": zone, "project_id": project},
            ssh_user="ubuntu",
            node=node,
            head_requirements=("google-api-python-client>=2", "google-cloud-storage>=2"),
        ),
    )
