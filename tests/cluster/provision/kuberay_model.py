"""The fields of KubeRay's custom resources that Thaw writes, as strictly as KubeRay takes them (v1.6)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(m|Ki|Mi|Gi|Ti)?$")]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Meta(Strict):
    name: Name
    namespace: Name
    labels: dict[str, LabelValue] = {}
    annotations: dict[str, str] = {}


class ConfigMap(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Meta
    data: dict[str, str]


class Named(Strict):
    name: Name


class SecretSource(Strict):
    secretRef: Named


class Variable(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Z_]+$")]
    value: str


class Resources(Strict):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity | int]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity | int]


class Mount(Strict):
    name: Name
    mountPath: str
    readOnly: bool = False


class Container(Strict):
    name: Name
    image: str
    env: list[Variable] = []
    envFrom: list[SecretSource] = []
    resources: Resources
    volumeMounts: list[Mount]


class EmptyDir(Strict):
    medium: Literal["Memory"]
    sizeLimit: Quantity


class Volume(Strict):
    name: Name
    emptyDir: EmptyDir | None = None
    configMap: Named | None = None


class Toleration(Strict):
    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Pod(Strict):
    restartPolicy: Literal["Never"]  # autoscaler v2 asks for it
    nodeSelector: dict[str, LabelValue] = {}
    tolerations: list[Toleration] = []
    containers: list[Container]
    volumes: list[Volume]


class Template(Strict):
    spec: Pod


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    serviceType: Literal["ClusterIP"]
    template: Template


class WorkerGroup(Strict):
    groupName: Name
    replicas: Literal[0]
    minReplicas: Literal[0]
    maxReplicas: Annotated[int, Field(ge=1)]
    rayStartParams: dict[str, str]
    template: Template


class AutoscalerOptions(Strict):
    version: Literal["v2"]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    idleTimeoutSeconds: Annotated[int, Field(ge=1)]


class AuthOptions(Strict):
    mode: Literal["token"]


class RayCluster(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Strict):
    entrypoint: str
    backoffLimit: int
    suspend: bool
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)]
    rayClusterSpec: RayCluster


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Meta
    spec: JobSpec
