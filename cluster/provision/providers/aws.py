"""Amazon EC2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from cluster.provision.launcher import Cloud
from cluster.provision.launcher import render as render_launcher
from cluster.provision.spec import ClusterSpec, Head, Workers, need
from cluster.provision.workload import Workload


def render(workload: Workload, spec: ClusterSpec) -> str:
    """A file of Ray's cluster launcher for EC2."""
    region = need(spec.region, "region", "aws", "us-west-2")
    # Ray's own default is too old for today's torch.
    image = need(
        spec.machine_image,
        "machine_image",
        "aws",
        "ami-... (in your region, with Ubuntu 22.04 and GPU drivers)",
    )

    def node(kind: Head | Workers, spot: bool) -> Mapping[str, Any]:
        default = "m6i.large" if isinstance(kind, Head) else None
        config: dict[str, Any] = {
            "InstanceType": need(kind.type or default, "workers.type", "aws", "g5.xlarge"),
            "BlockDeviceMappings": [
                {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": kind.disk_gb, "VolumeType": "gp3"}}
            ],
            "ImageId": image,
        }
        if spec.ssh_private_key is not None:
            config["KeyName"] = PurePath(spec.ssh_private_key).stem
        if spec.instance_profile is not None:
            key = "Arn" if spec.instance_profile.startswith("arn:") else "Name"
            config["IamInstanceProfile"] = {key: spec.instance_profile}
        if spot:
            config["InstanceMarketOptions"] = {"MarketType": "spot"}
        return config

    zones = {"availability_zone": ",".join(spec.zones)} if spec.zones else {}
    return render_launcher(
        workload,
        spec,
        Cloud(
            place=f"AWS, {region}",
            # Stopped nodes would go on costing their disks.
            provider={"type": "aws", "region": region, **zones, "cache_stopped_nodes": False},
            ssh_user="ubuntu",
            node=node,
            head_requirements=("boto3>=1.26",),
        ),
    )
