"""Rendered cluster files: golden for every provider, and valid as their readers see them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.capacity import GangShape
from cluster.provision.providers import PROVIDERS
from cluster.provision.spec import ClusterSpec, load, parse
from cluster.provision.workload import Workload, node_groups
from tests.cluster.provision.kuberay_model import ConfigMap, RayJob
from tests.conftest import REPOSITORY

PYTHON = f"python3.{sys.version_info.minor}"
GOLDEN = Path(__file__).with_name("golden")
WORKLOAD = Workload(
    name="Movie_Reviews",
    file="name: Movie_Reviews\nsearch: {trials: 20}\n",
    shape=GangShape(workers=2, cpus_per_worker=4, gpus_per_worker=1),
    gangs=6,
)
KINDS = [
    {"type": "large", "cpus": 16, "gpus": 4, "max": 2},
    {"type": "small", "cpus": 8, "gpus": 1, "spot": False},
]
COMMON: dict[str, Any] = {
    "storage": "s3://bucket/sweeps",
    "install": "thaw @ git+https://example.com/thaw@v0.1.0",
    "secrets_file": "~/.thaw.env",
    "workers": KINDS,
}
CLUSTERS: dict[str, dict[str, Any]] = {
    "aws": {
        "region": "us-west-2",
        "zones": ["us-west-2a", "us-west-2b"],
        "instance_profile": "nodes",
        "machine_image": "ami-0123456789abcdef0",
    },
    "gcp": {"region": "us-west1", "project": "p1", "instance_profile": "nodes@p1.iam.gserviceaccount.com"},
    "azure": {
        "region": "westus2",
        "resource_group": "ray",
        "instance_profile": "/subscriptions/0/resourceGroups/rg/providers/Microsoft.ManagedIdentity"
        "/userAssignedIdentities/nodes",
    },
    "local": {"head_ip": "192.0.2.1", "worker_ips": ["192.0.2.2", "192.0.2.3"], "ssh_user": "me"},
    "kuberay": {
        "kubernetes": {"image": "ghcr.io/me/thaw:0.1", "queue": "research", "secret": "thaw-keys"},
        "workers": [
            {**kind, "node_selector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
            for kind in KINDS
        ],
    },
}
CLOUDS = ["aws", "gcp", "azure"]
LAUNCHERS = [name for name in PROVIDERS if name != "kuberay"]


def cluster(provider: str, **changed: Any) -> ClusterSpec:
    return parse(COMMON | CLUSTERS[provider] | changed)


def rendered(provider: str, **changed: Any) -> str:
    return PROVIDERS[provider](WORKLOAD, cluster(provider, **changed))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_file_is_the_golden_one(provider: str) -> None:
    """Written anew with THAW_WRITE_GOLDEN=1; then look at the difference."""
    golden = GOLDEN / f"{provider}.yaml"
    text = rendered(provider)
    if os.environ.get("THAW_WRITE_GOLDEN"):
        golden.write_text(text.replace(PYTHON, "python3.11"))
    assert text == golden.read_text().replace("python3.11", PYTHON)
    comments = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert len(comments) > 12  # a file that explains itself


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_key_is_rendered(provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = "planted-" + "key-0123456789"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, planted)
    file = tmp_path / "thaw.env"
    file.write_text(f"WANDB_API_KEY={planted}\n")
    text = rendered(provider, secrets_file=str(file))
    assert planted not in text
    assert (str(file) in text) == (provider != "kuberay")  # a reference, which Kubernetes has of its own


@pytest.mark.parametrize("provider", LAUNCHERS)
def test_ray_takes_the_launchers_file(provider: str) -> None:
    config = yaml.safe_load(rendered(provider))
    validate_config(prepare_config(config))  # Ray's JSON schema and its own checks
    assert config["provider"]["type"] == provider
    start = " ".join(config["head_start_ray_commands"])
    assert "RAY_AUTH_MODE=token" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_AUTH_MODE=token" in " ".join(config["worker_start_ray_commands"])
    assert "--num-cpus=0" in start  # the driver's node holds no trials
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "thaw @ git+https" in " ".join(config["setup_commands"])


@pytest.mark.parametrize("provider", CLOUDS)
def test_nodes_get_this_python_where_they_have_none(provider: str) -> None:
    setup = yaml.safe_load(rendered(provider))["setup_commands"]
    assert f"install -y {PYTHON} {PYTHON}-venv" in setup[0]
    assert f"{PYTHON} -m venv" in setup[1]
    assert "apt-get" not in rendered("local")  # machines of one's own are left as they are


def test_a_key_of_ones_own_is_named_as_each_cloud_wants_it() -> None:
    key = {"ssh_private_key": "~/.ssh/mine.pem"}
    types = yaml.safe_load(rendered("aws", **key))["available_node_types"]
    assert [kind["node_config"]["KeyName"] for kind in types.values()] == ["mine"] * 3
    auth = yaml.safe_load(rendered("azure", **key))["auth"]
    assert auth["ssh_public_key"] == "~/.ssh/mine.pem.pub"  # Ray takes both or none
    for provider in CLOUDS:
        validate_config(prepare_config(yaml.safe_load(rendered(provider, **key))))


def test_source_that_is_not_here_cannot_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.provision import launcher

    assert REPOSITORY.samefile(yaml.safe_load(rendered("aws", install=None))["file_mounts"]["~/thaw-source"])
    monkeypatch.setattr(launcher, "__file__", str(tmp_path / "cluster" / "provision" / "launcher.py"))
    with pytest.raises(ValueError, match=r"cluster\.install: is needed"):
        rendered("aws", install=None)


@pytest.mark.parametrize("provider", CLOUDS)
def test_trials_are_on_spot_and_the_driver_never(provider: str) -> None:
    types = yaml.safe_load(rendered(provider))["available_node_types"]
    asked = {"aws": "MarketType: spot", "gcp": "preemptible: true", "azure": "priority: Spot"}[provider]
    spot = {name: asked in yaml.safe_dump(kind["node_config"]) for name, kind in types.items()}
    assert spot == {"head": False, "workers-0": True, "workers-1": False}
    labels = {name: kind["labels"]["ray.io/market-type"] for name, kind in types.items()}
    assert labels == {"head": "on-demand", "workers-0": "spot", "workers-1": "on-demand"}
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    # Six gangs of two workers: at most two large nodes by the file, twelve small ones by the need.
    assert [types[name]["max_workers"] for name in types] == [0, 2, 12]


def test_kuberay_takes_the_job() -> None:
    first, second = yaml.safe_load_all(rendered("kuberay"))
    sweep, job = ConfigMap.model_validate(first), RayJob.model_validate(second)
    assert yaml.safe_load(sweep.data["sweep.yaml"]) == yaml.safe_load(WORKLOAD.file)
    assert job.metadata.labels == {"kueue.x-k8s.io/queue-name": "research"}
    assert job.spec.suspend
    # What fails is started again by Kubernetes, which must not undo a `pause`.
    assert job.spec.entrypoint.startswith("python -m cluster.jobs.supervise --paused-is-done thaw run ")
    ray = job.spec.rayClusterSpec
    assert ray.headGroupSpec.rayStartParams["num-cpus"] == "0"
    groups = ray.workerGroupSpecs
    assert [g.maxReplicas for g in groups] == [2, 12]
    assert [g.rayStartParams["labels"].rpartition("=")[2] for g in groups] == ["spot", "on-demand"]
    for pod in [ray.headGroupSpec.template.spec, *(g.template.spec for g in groups)]:
        container = pod.containers[0]
        assert [source.secretRef.name for source in container.envFrom] == ["thaw-keys"]
        assert {mount.name for mount in container.volumeMounts} == {volume.name for volume in pod.volumes}
    assert groups[0].template.spec.containers[0].resources.limits["nvidia.com/gpu"] == 4
    unqueued = rendered("kuberay", kubernetes={"image": "thaw"})
    assert not RayJob.model_validate(list(yaml.safe_load_all(unqueued))[1]).spec.suspend


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_reads_the_job(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(rendered("kuberay"))
    command = ["kubectl", "create", "--dry-run=client", "--validate=false", "-f", str(file)]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "connection refused" in asked.stderr or "no matches for kind" in asked.stderr:
        pytest.skip("kubectl has no cluster to ask for the kinds")
    assert asked.returncode == 0, asked.stderr


def test_a_gang_that_no_node_could_hold_is_refused() -> None:
    wide = replace(WORKLOAD, shape=GangShape(workers=1, cpus_per_worker=4, gpus_per_worker=8))
    with pytest.raises(ValueError, match=r"no node of .* can hold a worker"):
        node_groups(wide, cluster("aws"))
    long = replace(WORKLOAD, shape=GangShape(workers=9, cpus_per_worker=4, gpus_per_worker=1))
    with pytest.raises(ValueError, match="allows nodes for 8"):
        node_groups(long, cluster("aws", workers=[KINDS[0]]))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"workers": [{"cpu": 4, "cpus": 4}]}, "cluster.workers[0].cpu: unknown key; did you mean cpus?"),
        ({"workers": []}, "cluster.workers: "),
        ({}, "cluster.workers: is missing"),
        ({"workers": KINDS, "regoin": "x"}, "cluster.regoin: unknown key; did you mean region?"),
        ({"workers": KINDS, "region": "a; rm -rf /"}, "cluster.region: "),
        ({"workers": KINDS, "name": "../x"}, "cluster.name: "),
        ({"workers": KINDS, "install": "thaw\n- evil"}, "cluster.install: "),
        ({"workers": [{"cpus": -1}]}, "cluster.workers[0].cpus: "),
        ({"workers": KINDS, "kubernetes": {"image": "a", "quue": "b"}}, "did you mean queue?"),
    ],
)
def test_a_wrong_file_is_said_by_path(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        parse(raw)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("provider", "missing"),
    [
        ("aws", "region"),
        ("aws", "machine_image"),
        ("gcp", "project"),
        ("azure", "resource_group"),
        ("local", "head_ip"),
        ("kuberay", "kubernetes"),
        ("kuberay", "storage"),
    ],
)
def test_what_a_provider_needs_is_asked_for(provider: str, missing: str) -> None:
    with pytest.raises(ValueError, match=rf"cluster\.{missing}: {provider} needs it"):
        rendered(provider, **{missing: None})


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_no_requirement_breaks_out_of_its_place(text: str) -> None:
    try:
        spec = cluster("aws", install=text)
    except ValueError:
        return
    config = yaml.safe_load(PROVIDERS["aws"](WORKLOAD, spec))
    assert set(config) == set(yaml.safe_load(rendered("aws")))
    assert len(config["setup_commands"]) == 5


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=60))
def test_no_sweep_file_breaks_out_of_its_config_map(text: str) -> None:
    file = yaml.safe_dump({"name": text}, allow_unicode=True)
    first, _ = yaml.safe_load_all(PROVIDERS["kuberay"](replace(WORKLOAD, file=file), cluster("kuberay")))
    assert yaml.safe_load(first["data"]["sweep.yaml"]) == yaml.safe_load(file)


GOOD = "workers: [{cpus: 1}]\n"
ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
HOSTILE = {
    "no YAML": "a: b: c",
    "python object": "!!python/object/apply:os.system [ls]",
    "no mapping": "- 1",
    "deep": "[" * 5000,
    "NUL": "workers: \x00",
    "empty": "",
    "aliases": f"{ALIASES}{GOOD}head: *a9\n",
    "aliases of keys": f"{ALIASES}{GOOD}head: {{? *a9 : 1}}\n",
    "endless": f"{GOOD}head: &h {{node_selector: *h}}\n",
    "steers a terminal": f'{GOOD}"\\e[2Jx": 1\n',
    "hexadecimal": f"workers: [{{cpus: 0x{'f' * 20_000}}}]\n",
    "a number of 5,000 digits": f"workers: [{{cpus: {'9' * 5_000}}}]\n",
    "base 60": f"workers: [{{cpus: 1:{'30:' * 3_000}00}}]\n",
    "a key that is no word": f"{GOOD}1: 2\n",
    "100 MB": f"{GOOD}#{'x' * 100_000_000}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_cluster_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(HOSTILE[name])
    with pytest.raises(ValueError, match="--config") as refused:
        load(path)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1_000


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cluster_files_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    text = yaml.safe_dump(COMMON | CLUSTERS["kuberay"])
    at, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 30))
    signs = ["&a", "*a", "<<: ", "!!python/none ", "? ", "- ", "{", "]", "|\n", "1e999", ".inf", '"\\e"']
    junk = data.draw(st.text(max_size=20) | st.sampled_from(signs))
    path = tmp_path / "cluster.yaml"
    path.write_text(text[:at] + junk + text[at + length :], encoding="utf-8", errors="surrogatepass")
    try:
        spec = load(path)
    except ValueError as refused:
        assert all(line.isprintable() for line in str(refused).splitlines())  # noqa: PT017
        return
    assert re.fullmatch(r"[a-z][a-z0-9-]*", spec.name)
