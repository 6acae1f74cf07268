"""Delta checkpoints: the tensors that thawed so far and their optimizer state, by name.

A checkpoint is a directory of safetensors files and a manifest, which is written last; the
directory appears under its name only when it is whole. Nothing in it is ever unpickled, and
nothing depends on the ZeRO stage or the number of workers that wrote it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.checksums import DamagedFile, describe, get_files
from training.config import TrialConfig
from training.manifest import MANIFEST, CheckpointError, DamagedCheckpoint, read_manifest
from training.optim import Slots
from training.reach import patiently
from training.store import Place
from training.team import Team

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a trial stands: all that the next step depends on besides its configuration."""

    step: int
    """Optimizer steps taken; position in the data and random numbers follow from it."""
    weights: Mapping[str, Tensor]
    """fp32 values of every tensor that thawed so far, or that the pretrained model lacked."""
    slots: Mapping[str, Slots] = field(default_factory=dict)
    """The optimizer's state of every tensor that thawed so far."""
    scaler: Mapping[str, float] | None = None
    """State of the dynamic loss scale (fp16)."""
    losses: tuple[float, ...] = ()
    """The latest training losses: three in a row that are not finite end a trial."""
    seconds: float = 0.0
    """Seconds of training so far, over all processes that worked on the trial."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """One evaluation of a trial."""

    step: int
    metrics: Mapping[str, float]
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state, where it lies, and the trial's evaluations up to it; the last one is its own."""

    path: Path
    """Where it lies, or what it was copied to, on this machine."""
    location: str
    """Where it lies for everyone: a path, or a URI."""
    state: State
    phase: str
    history: tuple[Told, ...]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint belongs to, wherever model and data lie."""

    model: str
    """Fingerprint of the pretrained weights that the delta is relative to."""
    data: str
    """Fingerprint of the tokenised data."""
    settings: str
    """Hash of the other settings that the trial's mathematics depends on."""


def identity(config: TrialConfig, *, model: str, data: str) -> Identity:
    """The identity of a trial. ZeRO, micro-batch and recomputation do not enter: they change nothing."""
    settings = {**asdict(config.training), "seed": config.seed}
    for neutral in ("zero", "micro_batch_size", "activation_checkpointing", "log_every"):
        del settings[neutral]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Identity(model=model, data=data, settings=digest)


def path_of(directory: Path, step: int) -> Path:
    """Where a trial's checkpoint after `step` steps lies."""
    return directory / f"step-{step:08d}"


def clean(directory: Path) -> None:
    """Remove what writers that were killed have left. Not while anyone writes."""
    for draft in directory.glob(".step-*"):
        shutil.rmtree(draft, ignore_errors=True)


def drop(directory: Path, remote: Place | None, *, keep: Container[int], before: int) -> None:
    """Delete the checkpoints of steps before `before` that are not in `keep`. What cannot be is left."""
    names = [path.name for path in directory.glob("step-*")]
    if remote is not None:
        names = sorted({name.partition("/")[0] for name in remote.files() if name.startswith("step-")})
    for name in names:
        step = name.removeprefix("step-")
        if not step.isdigit() or int(step) >= before or int(step) in keep:
            continue
        if remote is None:
            shutil.rmtree(directory / name, ignore_errors=True)
        else:
            with suppress(OSError):
                (remote / name).remove_tree()


def newest(
    directory: Path, identity: Identity, remote: Place | None = None, team: Team | None = None
) -> Checkpoint | None:
    """The newest checkpoint in a trial's directory that can be used; one that cannot is passed over.

    Args:
        remote: the trial's place in an object store; `directory` is where they are copied to then.
        team: the ranks that go on from it: from one that all of them can use, though one may not see
            yet, or no longer, what another does. Every rank calls it alike.

    Raises:
        CheckpointError: if there are only such as belong to another trial, model or data set.
        OSError: if the object store, or the sweep's directory, is out of reach after all patience.
    """
    refused: list[CheckpointError] = []
    names: list[str] = []
    if team is None or team.leads:
        names = _within_reach(directory, remote, partial(_names, directory, remote))
    for name in names if team is None else team.broadcast(names):
        found, failure = None, None
        try:
            found = _within_reach(directory, remote, partial(_open, directory, name, identity, remote))
        except CheckpointError as error:
            failure = error
        failures = [failure] if team is None else team.gather(failure)
        if not any(failures):
            if refused:
                warnings.warn(f"passed over, so the trial goes on from {name}: {refused[0]}", stacklevel=2)
            return found
        refused += filter(None, failures)
    for foreign in refused:
        if not isinstance(foreign, DamagedCheckpoint):
            raise foreign
    if refused:
        warnings.warn(f"no usable checkpoint, so the trial starts anew: {refused[0]}", stacklevel=2)
    return None


def _names(directory: Path, remote: Place | None) -> list[str]:
    """What may be the checkpoints of a trial, the newest first."""
    if remote is None:
        return sorted((path.name for path in directory.glob("step-*")), reverse=True)
    files = (name.partition("/") for name in remote.files())
    return sorted((name for name, _, file in files if file == MANIFEST), reverse=True)


def _within_reach(directory: Path, remote: Place | None, call: Callable[[], T]) -> T:
    """What `call` reads of a trial's checkpoints, waiting for them where they are out of reach."""
    return patiently(directory, call) if remote is None else call()


def _open(directory: Path, name: str, identity: Identity, remote: Place | None) -> Checkpoint:
    path = directory / name
    try:
        if remote is not None:
            fetch(remote / name, path)
        manifest = read_manifest(path)
        if manifest["identity"] != asdict(identity):
            theirs = [
                key for key, value in asdict(identity).items() if manifest["identity"].get(key) != value
            ]
            raise CheckpointError(f"{path}: made with other {' and '.join(theirs)}")
        return Checkpoint(
            path=path,
            location=str(path if remote is None else remote / name),
            state=_load(path, manifest),
            phase=manifest["phase"],
            history=tuple(Told(**told) for told in manifest["history"]),
        )
    finally:
        if remote is not None:  # it is in memory now
            shutil.rmtree(path, ignore_errors=True)


def fetch(place: Place, path: Path) -> None:
    """Copy the checkpoint at `place` to `path`, which is on this machine.

    Raises:
        DamagedCheckpoint: if it is not whole, or was altered.
        StorageError: if it cannot be read.
    """
    try:
        (place / MANIFEST).download(path / MANIFEST)
        get_files(place, read_manifest(path)["files"], path)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{place}: not a checkpoint, or one that was cut short") from error
    except DamagedFile as error:
        raise DamagedCheckpoint(str(error)) from error


def load_weights(path: Path, model: str) -> dict[str, Tensor]:
    """The delta of the checkpoint at `path`: fp32 tensors by name.

    Args:
        model: fingerprint of the pretrained weights that are at hand.

    Raises:
        CheckpointError: if it is damaged, or relative to other pretrained weights.
    """
    manifest = read_manifest(path)
    if manifest["identity"].get("model") != model:
        raise CheckpointError(f"{path}: made from other pretrained weights than those at hand")
    return _read(path, manifest, "weights")


def _load(path: Path, manifest: Mapping[str, Any]) -> State:
    weights = load_weights(path, manifest["identity"]["model"])
    stored: dict[str, dict[str, Tensor]] = {name: {} for name in manifest["optimizer_steps"]}
    for key, tensor in _read(path, manifest, "slots").items():
        kind, _, name = key.partition("/")
        if name not in stored:
            raise DamagedCheckpoint(f"{path}: the manifest counts no steps of {name[:200]!r}")
        stored[name][kind] = tensor
    return State(
        step=manifest["step"],
        weights=weights,
        slots={
            name: Slots(tensors=stored[name], steps=steps)
            for name, steps in manifest["optimizer_steps"].items()
        },
        scaler=manifest["scaler"],
        losses=tuple(manifest["losses"]),
        seconds=manifest["seconds"],
    )


def _read(path: Path, manifest: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """The tensors of all files of one kind, each checked against the manifest."""
    tensors: dict[str, Tensor] = {}
    for name, described in manifest["files"].items():
        if name.startswith(f"{kind}-"):
            _verify(path / Path(name).name, described)
            try:
                tensors |= load_file(path / Path(name).name)
            except SafetensorError as error:
                raise DamagedCheckpoint(f"{path / name}: not tensors: {error}") from error
    return tensors


def _verify(file: Path, described: Mapping[str, Any]) -> None:
    try:
        found = describe(file)
    except OSError as error:
        raise DamagedCheckpoint(f"{file}: cannot be read: {error}") from error
    if found != described:
        raise DamagedCheckpoint(f"{file}: contents do not match the manifest; it was cut short or altered")
