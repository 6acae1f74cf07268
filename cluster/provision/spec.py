"""`cluster.yaml`: what a cluster is made of. The only pydantic in `cluster`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.provision.text import reason

_STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
_Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$")]
# What goes into a shell command or a path of a rendered file holds nothing that a shell would act on.
_Word = Annotated[str, Field(pattern=r"^~?[A-Za-z0-9_./:@%+=,-]+$", max_length=500)]
_Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=500)]
_MAX_BYTES = 200_000
_MAX_VALUES = 20_000
_MAX_INTEGER = 2**63

Provider = Literal["aws", "gcp", "azure", "kuberay", "local"]


class Head(BaseModel):
    """The node that Ray's control plane and the sweep's driver run on: never on spot, no trials."""

    model_config = _STRICT

    type: _Word | None = None
    """Instance type; each cloud has a small one of its own where unset."""
    cpus: Annotated[int, Field(ge=1, le=1024)] = 2
    """CPUs of its pod (kuberay)."""
    memory_gb: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Memory of its pod (kuberay)."""
    disk_gb: Annotated[int, Field(ge=20, le=65_536)] = 100
    """Its disk (clouds)."""
    node_selector: dict[_Word, _Word] = Field(default_factory=dict)
    """Labels of the Kubernetes nodes that it may be on (kuberay)."""


class Workers(BaseModel):
    """A kind of node that gangs run on."""

    model_config = _STRICT

    type: _Word | None = None
    """Instance type; clouds need one."""
    cpus: Annotated[int, Field(ge=1, le=1024)]
    """CPUs of one node."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of one node."""
    memory_gb: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Memory of its pod (kuberay)."""
    disk_gb: Annotated[int, Field(ge=20, le=65_536)] = 200
    """Its disk (clouds)."""
    spot: bool = True
    """Spot (preemptible) nodes: cheaper, and Thaw goes on when they are taken away."""
    max: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """At most this many; as many as the sweep can use where unset."""
    node_selector: dict[_Word, _Word] = Field(default_factory=dict)
    """Labels of the Kubernetes nodes that they may be on (kuberay)."""
    tolerations: list[dict[_Word, _Word]] = Field(default_factory=list)
    """Taints of Kubernetes nodes that they tolerate (kuberay)."""


class Kubernetes(BaseModel):
    """What only Kubernetes needs."""

    model_config = _STRICT

    image: _Word
    """Container image with Thaw and Ray in it."""
    namespace: _Word = "default"
    """Where the job is made."""
    queue: _Word | None = None
    """Kueue's local queue: the job waits there until all that it needs at first is free."""
    priority_class: _Word | None = None
    """Kueue's workload priority class."""
    secret: _Word | None = None
    """A secret whose entries become environment variables (WANDB_API_KEY, HF_TOKEN, ...)."""
    shared_memory_gb: Annotated[int, Field(ge=1, le=4096)] = 4
    """Size of /dev/shm of a worker, for Ray's object store and NCCL."""
    ttl_s: Annotated[int, Field(ge=0)] = 600
    """Seconds that the finished job and its cluster stay, for a look at their logs."""


class ClusterSpec(BaseModel):
    """What a cluster is made of."""

    model_config = _STRICT

    name: _Name = "thaw"
    """The cluster's name: small letters, digits and `-`."""
    provider: Provider | None = None
    """Where it is; `--provider` names another."""
    region: _Word | None = None
    """The cloud's region (azure: location)."""
    zones: list[_Word] = Field(default_factory=list)
    """Availability zones; spot nodes are found more easily in several (aws)."""
    project: _Word | None = None
    """Project id (gcp)."""
    resource_group: _Word | None = None
    """Resource group (azure)."""
    instance_profile: _Word | None = None
    """Who the nodes are, to reach the storage, and the head to start nodes as well: IAM instance profile
    (aws), service account (gcp), user-assigned identity's resource id (azure)."""
    machine_image: _Word | None = None
    """Image of the nodes' disks, with Ubuntu: AMI (aws, which needs one), source image (gcp),
    publisher:offer:sku:version (azure)."""
    ssh_user: _Word | None = None
    """Who logs in to the nodes."""
    ssh_private_key: _Word | None = None
    """The key to log in with; clouds make one where unset. Its file is called as the EC2 key pair (aws), and
    its public half lies beside it as .pub (azure)."""
    head: Head = Head()
    """The node for Ray's control plane and the sweep's driver."""
    workers: Annotated[list[Workers], Field(min_length=1, max_length=20)]
    """The kinds of nodes that gangs run on."""
    head_ip: _Word | None = None
    """Address of the head (local)."""
    worker_ips: list[_Word] = Field(default_factory=list)
    """Addresses of the workers (local)."""
    storage: _Word | None = None
    """Where sweeps live, seen by all nodes: s3://, gs:// or a mounted directory."""
    install: _Text | None = None
    """What `pip install` gets on each node: a requirement, or a directory with Thaw's source that is copied
    there; this installation's source where unset."""
    secrets_file: _Word | None = None
    """A local file of NAME=value lines that is copied to the nodes and becomes their environment (clouds)."""
    idle_minutes: Annotated[float, Field(gt=0, le=1440)] = 5
    """A worker that has had nothing to do for so long goes away."""
    kubernetes: Kubernetes | None = None
    """What only Kubernetes needs."""


def load(path: Path) -> ClusterSpec:
    """The cluster that a file describes.

    Raises:
        ValueError: with every problem there is, by path.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"--config: {path} cannot be read ({error.strerror}); give a cluster.yaml"
        ) from error
    if len(text) > _MAX_BYTES:
        raise ValueError(f"--config: {path} has {len(text)} bytes; a cluster.yaml has at most {_MAX_BYTES}")
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"--config: {path} is not YAML: {reason(error)}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"--config: {path} must be a mapping with at least `workers`")
    if burden := _burden(raw):
        raise ValueError(f"--config: {path} has {burden} in it; write it out plainly")
    return parse(raw)


def _burden(raw: Any) -> str | None:
    """What would make even a message about the file a danger: aliases multiply, words steer terminals."""
    waiting, seen = [raw], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > _MAX_VALUES:
            return f"more than {_MAX_VALUES} values, with those that aliases stand for"
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            return "a number that no setting could have"
        if isinstance(value, dict):
            if odd := next((key for key in value if not (isinstance(key, str) and key.isprintable())), None):
                return f"the key {str(odd)[:80]!r}"
            waiting += value.values()
        elif isinstance(value, list | set | tuple):
            waiting += value
    return None


def parse(raw: dict[str, Any]) -> ClusterSpec:
    """The cluster of plain values.

    Raises:
        ValueError: with every problem there is, by path.
    """
    try:
        return ClusterSpec.model_validate(raw)
    except ValidationError as error:
        raise ValueError("\n".join(_line(e) for e in error.errors(include_url=False))) from None


def _line(error: Any) -> str:
    place = "cluster"
    model: Any = ClusterSpec
    for part in error["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
        if isinstance(part, str) and error["type"] != "extra_forbidden":
            model = {"head": Head, "workers": Workers, "kubernetes": Kubernetes}.get(part, model)
        elif isinstance(part, str):
            inner = {"head": Head, "workers": Workers, "kubernetes": Kubernetes}.get(part)
            model = inner or model
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1])[:80], model.model_fields, n=1)
        return f"{place[:200]}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{place}: is missing"
    message = str(error["msg"])[:1].lower() + str(error["msg"])[1:]
    return f"{place}: {message}, got {str(error['input'])[:80]!r}"


def need(value: str | None, name: str, provider: str, example: str) -> str:
    """A setting that a provider cannot do without.

    Raises:
        ValueError: if it is not there.
    """
    if value is None:
        last = name.rpartition(".")[2]
        raise ValueError(f"cluster.{name}: {provider} needs it, such as `{last}: {example}`")
    return value
