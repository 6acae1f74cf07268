"""Checkpoints as a stranger might write them: used, passed over or refused; nothing else happens."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training import checkpoint, manifest
from training.checkpoint import CheckpointError, DamagedCheckpoint, Identity, State, Told
from training.checksums import describe
from training.draft import Draft
from training.optim import Slots

IDENTITY = Identity(model="m", data="d", settings="s")
WEIGHTS = "weights-00000-of-00001.safetensors"


def write(directory: Path) -> Path:
    state = State(
        step=3,
        weights={"a": torch.ones(4), "b": torch.zeros(2, 2)},
        slots={"a": Slots(tensors={"exp_avg": torch.ones(4)}, steps=3)},
    )
    draft = Draft(checkpoint.path_of(directory, 3), state, rank=0, ranks=1, token="0")
    told = [Told(step=3, metrics={"eval/loss": 0.5})]
    return draft.commit(draft.files(), IDENTITY, phase="full", history=told).path


def restate(path: Path, said: Any) -> None:
    """Make `said` the manifest, with the checksums that go with it."""
    if isinstance(said, dict):
        files = said.get("files")
        for name, described in files.items() if isinstance(files, dict) else ():
            if isinstance(described, dict) and "/" not in name and (path / name).is_file():
                described |= describe(path / name)
        said = {**said, "sha256": manifest.digest(said)}
    (path / "manifest.json").write_text(json.dumps(said))


def read(directory: Path) -> State | None:
    """The newest state; None where it is passed over or refused."""
    try:
        found = checkpoint.newest(directory, IDENTITY)
    except CheckpointError:
        return None
    return found.state if found else None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore:no usable checkpoint")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_manifests_are_used_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = write(tmp_path)
    said = json.loads((path / "manifest.json").read_text())
    key = data.draw(st.sampled_from(sorted(said)))
    inner = said[key]
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        said[key] = {**inner, data.draw(st.sampled_from(sorted(inner))): data.draw(JSON)}
    else:
        said[key] = data.draw(JSON)
    restate(path, said)
    state = read(tmp_path)
    assert state is None or set(state.weights) <= {"a", "b"}


@pytest.mark.filterwarnings("ignore:no usable checkpoint")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 300), junk=st.binary(max_size=16), cut=st.integers(0, 40))
def test_tensor_files_are_used_or_refused(tmp_path: Path, at: int, junk: bytes, cut: int) -> None:
    path = write(tmp_path)
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole[:at] + junk + whole[at + cut :])
    restate(path, json.loads((path / "manifest.json").read_text()))
    state = read(tmp_path)
    assert state is None or all(isinstance(tensor, torch.Tensor) for tensor in state.weights.values())


class Bomb:
    """What unpickling it would do is seen."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._canary,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Bomb(canary)))
    canary.unlink()  # so it would work
    path = write(tmp_path)
    for content in (pickle.dumps(Bomb(canary)), _torch_save(Bomb(canary), tmp_path)):
        (path / WEIGHTS).write_bytes(content)
        restate(path, json.loads((path / "manifest.json").read_text()))
        with pytest.raises(DamagedCheckpoint, match="not tensors"):
            checkpoint.load_weights(path, "m")
    (path / "manifest.json").write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read_manifest(path)
    assert not canary.exists()


def _torch_save(value: Any, directory: Path) -> bytes:
    torch.save(value, directory / "saved")
    return (directory / "saved").read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "../../outside/weights-00000-of-00001.safetensors",
        "weights-../../../outside.safetensors",
        "/etc/weights-00000-of-00001.safetensors",
        "weights-00000-of-00001.safetensors\x00",
        "weights-00000-of-00001.pt",
        "manifest.json",
    ],
)
def test_a_manifest_names_tensor_files_beside_it_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = write(tmp_path)
    said = json.loads((path / "manifest.json").read_text())
    said["files"] = {name: {"bytes": 1, "sha256": "0" * 64}}
    restate(path, said)
    with pytest.raises(DamagedCheckpoint, match="files cannot be right"):
        checkpoint.read_manifest(path)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"format": 2, "step": 1' + "0" * 5_000 + "}",
        "null",
        '{"format": "' + "x" * 1_000_000 + '"}',
        "{" + " " * (65 * 2**20) + "}",
    ],
    ids=["deep", "digits", "null", "long", "65 MB"],
)
def test_a_manifest_that_is_a_burden_is_refused_in_a_line(tmp_path: Path, content: str) -> None:
    path = write(tmp_path)
    (path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        checkpoint.read_manifest(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1_000


def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path)
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    for length in (len(header), 2**62):
        (path / WEIGHTS).write_bytes(struct.pack("<Q", length) + header + b"\0" * 16)
        restate(path, json.loads((path / "manifest.json").read_text()))
        with pytest.raises(DamagedCheckpoint, match="not tensors"):
            checkpoint.load_weights(path, "m")
