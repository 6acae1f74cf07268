"""Kubernetes: a RayJob of KubeRay."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from cluster.connect import NODE_TYPES
from cluster.provision.launcher import SPOT
from cluster.provision.spec import ClusterSpec, need
from cluster.provision.text import block, fill, literal
from cluster.provision.workload import NodeGroup, Workload, node_groups, node_types


def render(workload: Workload, spec: ClusterSpec) -> str:
    """The job, and the sweep's file as a ConfigMap.

    Raises:
        ValueError: where something is missing, or the sweep does not fit.
    """
    kubernetes = spec.kubernetes
    if kubernetes is None:
        raise ValueError("cluster.kubernetes: kuberay needs it, with at least `image`, one with Thaw in it")
    storage = need(spec.storage, "storage", "kuberay", "s3://bucket/sweeps")
    # Names of Kubernetes are small letters, digits and `-`; pods add to them.
    job = "thaw-" + (re.sub(r"[^a-z0-9]+", "-", workload.name.lower()).strip("-")[:40].rstrip("-") or "sweep")
    labels: dict[str, str] = {}
    if kubernetes.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = kubernetes.queue
    if kubernetes.priority_class is not None:
        labels["kueue.x-k8s.io/priority-class"] = kubernetes.priority_class
    groups = node_groups(workload, spec)
    environment: dict[str, Any] = {"env": [{"name": "THAW_STORAGE", "value": storage}]}
    if kubernetes.secret is not None:
        environment["envFrom"] = [{"secretRef": {"name": kubernetes.secret}}]
    queued = kubernetes.queue is not None
    meta: dict[str, Any] = {"labels": labels} if labels else {}
    if queued:  # lets the job's cluster grow and shrink after it has been admitted
        meta["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}
    return fill(
        "kuberay.yaml",
        {
            "sweep": workload.name,
            "shape": workload.shape.describe(),
            "kueue_needed": ", and Kueue with elastic jobs (ElasticJobsViaWorkloadSlices)" * queued,
            "namespace": kubernetes.namespace,
            "job": job,
            "config": f"{job}-sweep",
            "storage": storage,
            "local_files": "".join(
                f"\n  # In the image, at this very place: {path}" for path in workload.local_files
            ),
            "sweep_file": literal(workload.file, 4),
            "labels": block(meta, 2) if meta else "  labels: {}",
            "suspend": "  # Kueue starts it when all that it needs at first is free.\n  suspend: true"
            if queued
            else "  suspend: false",
            "ttl": kubernetes.ttl_s,
            "ray_version": version("ray"),
            "idle_s": int(spec.idle_minutes * 60),
            "on_demand": f"{SPOT}=on-demand",
            "head_placement": block({"nodeSelector": spec.head.node_selector}, 10)
            if spec.head.node_selector
            else "          nodeSelector: {}",
            "image": kubernetes.image,
            "environment": block(
                environment
                | {"env": [*environment["env"], {"name": NODE_TYPES, "value": node_types(groups)}]},
                14,
            ),
            "head_cpus": str(spec.head.cpus),
            "head_memory": f"{spec.head.memory_gb}Gi",
            "workers": block([_group(g, spec, environment) for g in groups], 6),
        },
    )


def _group(group: NodeGroup, spec: ClusterSpec, environment: dict[str, Any]) -> dict[str, Any]:
    assert spec.kubernetes is not None
    node = group.node
    amounts: dict[str, Any] = {"cpu": node.cpus, "memory": f"{node.memory_gb}Gi"}
    if node.gpus:
        amounts["nvidia.com/gpu"] = node.gpus
    pod: dict[str, Any] = {"restartPolicy": "Never"}
    if node.node_selector:
        pod["nodeSelector"] = dict(node.node_selector)
    if node.tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in node.tolerations]
    return {
        "groupName": group.name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": group.max_nodes,
        "rayStartParams": {"labels": f"{SPOT}={'spot' if node.spot else 'on-demand'}"},
        "template": {
            "spec": {
                **pod,
                "containers": [
                    {
                        "name": "ray-worker",
                        "image": spec.kubernetes.image,
                        **environment,
                        "resources": {"requests": amounts, "limits": amounts},
                        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
                    }
                ],
                "volumes": [
                    {
                        "name": "shared-memory",
                        "emptyDir": {
                            "medium": "Memory",
                            "sizeLimit": f"{spec.kubernetes.shared_memory_gb}Gi",
                        },
                    }
                ],
            }
        },
    }
