"""Microsoft Azure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.provision.launcher import Cloud
from cluster.provision.launcher import render as render_launcher
from cluster.provision.spec import ClusterSpec, Head, Workers, need
from cluster.provision.workload import Workload

_IMAGE = "microsoft-dsvm:ubuntu-2204:2204-gen2:latest"


def render(workload: Workload, spec: ClusterSpec) -> str:
    """A file of Ray's cluster launcher for Azure.

    Raises:
        ValueError: where something is missing, or the image's name has not its four parts.
    """
    location = need(spec.region, "region", "azure", "westus2")
    group = need(spec.resource_group, "resource_group", "azure", "ray-cluster")
    image = (spec.machine_image or _IMAGE).split(":")
    if len(image) != 4:
        raise ValueError(
            f"cluster.machine_image: must be publisher:offer:sku:version on azure, got {spec.machine_image}"
        )

    def node(kind: Head | Workers, spot: bool) -> Mapping[str, Any]:
        default = "Standard_D2s_v5" if isinstance(kind, Head) else None
        parameters: dict[str, Any] = {
            "vmSize": need(kind.type or default, "workers.type", "azure", "Standard_NC4as_T4_v3"),
            "osDiskSize": kind.disk_gb,
            **dict(zip(("imagePublisher", "imageOffer", "imageSku", "imageVersion"), image, strict=True)),
        }
        if spot:
            parameters["priority"] = "Spot"
        return {"azure_arm_parameters": parameters}

    provider: dict[str, Any] = {"type": "azure", "location": location, "resource_group": group}
    if spec.zones:
        provider["availability_zone"] = ",".join(spec.zones)
    if spec.instance_profile is not None:
        # .../resourceGroups/GROUP/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME
        parts = spec.instance_profile.split("/")
        if len(parts) < 9 or parts[3] != "resourceGroups":
            raise ValueError(
                f"cluster.instance_profile: must be the resource id of a user-assigned identity on azure, "
                f"got {spec.instance_profile}"
            )
        provider |= {"msi_name": parts[-1], "msi_resource_group": parts[4]}
    return render_launcher(
        workload,
        spec,
        Cloud(
            place=f"Azure, {location}",
            provider=provider,
            ssh_user="ubuntu",
            node=node,
            public_key=True,
            head_requirements=(
                "azure-cli-core",
                "azure-identity",
                "azure-mgmt-compute",
                "azure-mgmt-network",
                "azure-mgmt-resource<25",  # Ray imports what is no longer there
                "azure-common",
                "msrestazure",
            ),
        ),
    )
