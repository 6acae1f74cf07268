"""Delta checkpoints: the tensors that thawed so far and their optimizer state, by name.

A checkpoint is a directory of safetensors files and a manifest, which is written last; the
directory appears under its name only when it is whole. Nothing in it is ever unpickled, and
nothing depends on the ZeRO stage or the number of workers that wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from training.config import TrialConfig
from training.optim import Slots

FORMAT = 2
MANIFEST = "manifest.json"
_KEYS = {
    "identity",
    "step",
    "seconds",
    "optimizer_steps",
    "loss_scale",
    "phase",
    "history",
    "files",
    "sha256",
}


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a trial stands: all that the next step depends on besides its configuration."""

    step: int
    """Optimizer steps taken; position in the data and random numbers follow from it."""
    weights: Mapping[str, Tensor]
    """fp32 values of every tensor that thawed so far, or that the pretrained model lacked."""
    slots: Mapping[str, Slots] = field(default_factory=dict)
    """The optimizer's state of every tensor that thawed so far."""
    loss_scale: float | None = None
    """Dynamic loss scale (fp16)."""
    seconds: float = 0.0
    """Seconds of training so far, over all processes that worked on the trial."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """One evaluation of a trial."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state, where it lies, and the trial's evaluations up to it; the last one is its own."""

    path: Path
    state: State
    phase: str
    history: tuple[Told, ...]


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
    """The identity of a trial. ZeRO, micro-batch and recomputation do not enter: they change nothing."""
    settings = {**asdict(config.training), "seed": config.seed}
    for neutral in ("zero", "micro_batch_size", "activation_checkpointing", "log_every"):
        del settings[neutral]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Identity(model=model, data=data, settings=digest)


def path_of(directory: Path, step: int) -> Path:
    """Where a trial's checkpoint after `step` steps lies."""
    return directory / f"step-{step:08d}"


class Draft:
    """A checkpoint that is being written, behind the training loop's back.

    Every rank makes one and writes its share of the tensors, from a thread of its own; rank 0
    commits. Until then nothing stands under the checkpoint's name.

    Args:
        token: the same on all ranks, and new for every draft.
    """

    def __init__(self, path: Path, state: State, *, rank: int, ranks: int, token: str) -> None:
        self.path = path
        self.state = state
        self._place = path.with_name(f".{path.name}.{token}")
        self._part = f"{rank:05d}-of-{ranks:05d}"
        names = sorted(state.weights)[rank::ranks]
        self._weights = {name: state.weights[name].contiguous() for name in names}
        self._slots = {
            f"{key}/{name}": tensor.contiguous()
            for name in sorted(state.slots)[rank::ranks]
            for key, tensor in state.slots[name].tensors.items()
        }
        self._files: dict[str, dict[str, Any]] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    def files(self) -> dict[str, dict[str, Any]]:
        """Size and checksum of this rank's files by name, once they are written.

        Raises:
            OSError: if they could not be.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._files

    def commit(
        self,
        files: Mapping[str, Mapping[str, Any]],
        identity: Identity,
        *,
        phase: str,
        history: Sequence[Told],
    ) -> Checkpoint:
        """Make the checkpoint count: `files` are those of all ranks, all written. Rank 0 only."""
        state = self.state
        manifest = {
            "format": FORMAT,
            "identity": asdict(identity),
            "step": state.step,
            "seconds": state.seconds,
            "optimizer_steps": {name: slots.steps for name, slots in state.slots.items()},
            "loss_scale": state.loss_scale,
            "phase": phase,
            "history": [asdict(told) for told in history],
            "files": dict(files),
        }
        with (self._place / MANIFEST).open("w") as file:
            json.dump({**manifest, "sha256": _digest(manifest)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(self.path, ignore_errors=True)
        self._place.rename(self.path)
        return Checkpoint(path=self.path, state=state, phase=phase, history=tuple(history))

    def _write(self) -> None:
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            for kind, tensors in (("weights", self._weights), ("slots", self._slots)):
                file = self._place / f"{kind}-{self._part}.safetensors"
                save_file(tensors, file)
                self._files[file.name] = _describe(file)
        except BaseException as error:
            self._failure = error


def clean(directory: Path) -> None:
    """Remove what writers that were killed have left. Not while anyone writes."""
    for draft in directory.glob(".step-*"):
        shutil.rmtree(draft, ignore_errors=True)


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
        history = tuple(Told(**told) for told in manifest["history"])
        return Checkpoint(path=path, state=state, phase=manifest["phase"], history=history)
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
    return _read(path, manifest, "weights")


def _load(path: Path, manifest: Mapping[str, Any]) -> State:
    weights = load_weights(path, manifest["identity"]["model"])
    stored: dict[str, dict[str, Tensor]] = {name: {} for name in manifest["optimizer_steps"]}
    for key, tensor in _read(path, manifest, "slots").items():
        kind, _, name = key.partition("/")
        stored[name][kind] = tensor
    return State(
        step=manifest["step"],
        weights=weights,
        slots={
            name: Slots(tensors=stored[name], steps=steps)
            for name, steps in manifest["optimizer_steps"].items()
        },
        loss_scale=manifest["loss_scale"],
        seconds=manifest["seconds"],
    )


def _digest(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says, besides the digest itself."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _read(path: Path, manifest: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """The tensors of all files of one kind, each checked against the manifest."""
    tensors: dict[str, Tensor] = {}
    for name, described in manifest["files"].items():
        if name.startswith(f"{kind}-"):
            _verify(path / Path(name).name, described)
            tensors |= load_file(path / Path(name).name)
    return tensors


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(file: Path, described: Mapping[str, Any]) -> None:
    try:
        found = _describe(file)
    except OSError as error:
        raise DamagedCheckpoint(f"{file}: cannot be read: {error}") from error
    if found != described:
        raise DamagedCheckpoint(f"{file}: contents do not match the manifest; it was cut short or altered")
