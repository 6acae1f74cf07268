"""Delta checkpoints: the tensors that thawed so far and their Adam state, by name.

A checkpoint is a directory of safetensors files and a manifest, which is written last; the
directory appears under its name only when it is whole. Nothing in it is ever unpickled, and
nothing depends on the ZeRO stage or the number of workers that wrote it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from training.config import TrialConfig
from training.optim import Moments

FORMAT = 1
MANIFEST = "manifest.json"
_WEIGHTS = "weights.safetensors"
_MOMENTS = "moments.safetensors"
_KEYS = {"identity", "step", "seconds", "adam_steps", "loss_scale", "phase", "metrics", "files", "sha256"}


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a trial stands: all that the next step depends on besides its configuration."""

    step: int
    """Optimizer steps taken; position in the data and random numbers follow from it."""
    weights: Mapping[str, Tensor]
    """fp32 values of every tensor that thawed so far, or that the pretrained model lacked."""
    moments: Mapping[str, Moments] = field(default_factory=dict)
    loss_scale: float | None = None
    """Dynamic loss scale (fp16)."""
    seconds: float = 0.0
    """Seconds of training so far, over all processes that worked on the trial."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state, where it lies, and the evaluation that goes with it."""

    path: Path
    state: State
    phase: str
    metrics: Mapping[str, float]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is not whole, or was altered."""


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
    """The identity of a trial. ZeRO stage and micro-batch do not enter: they change nothing."""
    settings = {**asdict(config.training), "seed": config.seed}
    for neutral in ("zero", "micro_batch_size", "log_every"):
        del settings[neutral]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Identity(model=model, data=data, settings=digest)


def path_of(directory: Path, step: int) -> Path:
    """Where a trial's checkpoint after `step` steps lies."""
    return directory / f"step-{step:08d}"


def save(checkpoint: Checkpoint, identity: Identity) -> None:
    """Write a checkpoint, whole or not at all."""
    path, state = checkpoint.path, checkpoint.state
    draft = path.with_name(f".{path.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    moments = {}
    for name, moment in state.moments.items():
        moments[f"exp_avg/{name}"] = moment.exp_avg.contiguous()
        moments[f"exp_avg_sq/{name}"] = moment.exp_avg_sq.contiguous()
    save_file({name: tensor.contiguous() for name, tensor in state.weights.items()}, draft / _WEIGHTS)
    save_file(moments, draft / _MOMENTS)
    manifest = {
        "format": FORMAT,
        "identity": asdict(identity),
        "step": state.step,
        "seconds": state.seconds,
        "adam_steps": {name: moment.steps for name, moment in state.moments.items()},
        "loss_scale": state.loss_scale,
        "phase": checkpoint.phase,
        "metrics": dict(checkpoint.metrics),
        "files": {name: _describe(draft / name) for name in (_WEIGHTS, _MOMENTS)},
    }
    (draft / MANIFEST).write_text(json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1))
    shutil.rmtree(path, ignore_errors=True)
    draft.rename(path)


def newest(directory: Path, identity: Identity) -> Checkpoint | None:
    """The newest usable checkpoint in a trial's directory; one that is damaged is passed over.

    Raises:
        CheckpointError: if it belongs to another trial, model or data set.
    """
    damaged = None
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            manifest = read_manifest(path)
            if manifest["identity"] != asdict(identity):
                theirs = [
                    key for key, value in asdict(identity).items() if manifest["identity"].get(key) != value
                ]
                raise CheckpointError(f"{path}: made with other {' and '.join(theirs)}")
            state = _load(path, manifest)
        except DamagedCheckpoint as error:
            damaged = error
            continue
        return Checkpoint(path=path, state=state, phase=manifest["phase"], metrics=manifest["metrics"])
    if damaged is not None:
        warnings.warn(f"no usable checkpoint, so the trial starts anew: {damaged}", stacklevel=2)
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at `path`.

    Raises:
        CheckpointError: if there is none, or one of another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path}: not a checkpoint, or one that was cut short: {error}") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise DamagedCheckpoint(
            f"{path}: not a checkpoint, or one that was altered: no format in its manifest"
        )
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {manifest['format']!r}, this version reads {FORMAT}"
        )
    if missing := sorted(_KEYS - manifest.keys()):
        raise DamagedCheckpoint(f"{path}: the manifest lacks {', '.join(missing)}")
    if manifest["sha256"] != _digest(manifest):
        raise DamagedCheckpoint(f"{path}: the manifest was altered: it does not match its checksum")
    return manifest


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
    _verify(path, manifest, _WEIGHTS)
    return load_file(path / _WEIGHTS)


def _load(path: Path, manifest: Mapping[str, Any]) -> State:
    weights = load_weights(path, manifest["identity"]["model"])
    _verify(path, manifest, _MOMENTS)
    stored = load_file(path / _MOMENTS)
    moments = {
        name: Moments(exp_avg=stored[f"exp_avg/{name}"], exp_avg_sq=stored[f"exp_avg_sq/{name}"], steps=steps)
        for name, steps in manifest["adam_steps"].items()
    }
    return State(
        step=manifest["step"],
        weights=weights,
        moments=moments,
        loss_scale=manifest["loss_scale"],
        seconds=manifest["seconds"],
    )


def _digest(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says, besides the digest itself."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(path: Path, manifest: Mapping[str, Any], name: str) -> None:
    try:
        found = _describe(path / name)
    except OSError as error:
        raise DamagedCheckpoint(f"{path / name}: cannot be read: {error}") from error
    if found != manifest["files"].get(name):
        raise DamagedCheckpoint(
            f"{path / name}: contents do not match the manifest; it was cut short or altered"
        )
