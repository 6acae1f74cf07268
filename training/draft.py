"""A checkpoint while it is being written: by all ranks at once, behind the training loop's back."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from training.checkpoint import Checkpoint, Identity, State, Told
from training.checksums import describe
from training.manifest import MANIFEST, text
from training.reach import PATIENCE_S, patiently
from training.store import Place, patience_s


class Draft:
    """A checkpoint that is being written, behind the training loop's back.

    Every rank makes one and writes its share of the tensors, from a thread of its own; rank 0
    commits. Until then nothing stands under the checkpoint's name.

    Args:
        path: the checkpoint, beside which it is drafted.
        token: the same on all ranks, and new for every draft.
        remote: the trial's place in an object store, where the checkpoint is to lie in the end.
    """

    def __init__(
        self, path: Path, state: State, *, rank: int, ranks: int, token: str, remote: Place | None = None
    ) -> None:
        self.path = path
        self.state = state
        self._remote = None if remote is None else remote / path.name
        self._place = path.with_name(f".{path.name}.{token}")
        # In an object store no name appears at once with all below it: there a draft is told by its files'.
        self._part = f"{rank:05d}-of-{ranks:05d}{'' if remote is None else f'.{token}'}"
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

    def written(self, within_s: float) -> bool:
        """Whether `files` will not wait, after so many seconds at most."""
        self._thread.join(within_s)
        return not self._thread.is_alive()

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
        manifest = text(
            {
                "identity": asdict(identity),
                "step": state.step,
                "seconds": state.seconds,
                "optimizer_steps": {name: slots.steps for name, slots in state.slots.items()},
                "scaler": None if state.scaler is None else dict(state.scaler),
                "losses": list(state.losses),
                "phase": phase,
                "history": [asdict(told) for told in history],
                "files": dict(files),
            }
        )
        if self._remote is not None:
            (self._remote / MANIFEST).write(manifest.encode(), patience=patience_s(PATIENCE_S))
            shutil.rmtree(self._place, ignore_errors=True)
        else:
            patiently(self.path.parent, lambda: self._commit_here(manifest))
        return Checkpoint(
            path=self.path,
            location=str(self._remote or self.path),
            state=state,
            phase=phase,
            history=tuple(history),
        )

    def discard(self) -> None:
        """Remove what was written of it on this machine, once nothing more is."""
        self._thread.join()
        shutil.rmtree(self._place, ignore_errors=True)

    def _commit_here(self, manifest: str) -> None:
        if self.path.is_dir() and not self._place.exists():
            return  # it went away when this had just been done
        with (self._place / MANIFEST).open("w") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(self.path, ignore_errors=True)
        self._place.rename(self.path)

    def _write(self) -> None:
        try:
            patiently(self.path.parent, self._write_files)
        except BaseException as error:
            self._failure = error

    def _write_files(self) -> None:
        self._place.mkdir(parents=True, exist_ok=True)
        for kind, tensors in (("weights", self._weights), ("slots", self._slots)):
            file = self._place / f"{kind}-{self._part}.safetensors"
            try:
                save_file(tensors, file)
            except SafetensorError as error:  # its only one, whatever the file system said
                raise OSError(f"{file}: cannot be written: {error}") from error
            self._files[file.name] = describe(file)
            if self._remote is not None:
                (self._remote / file.name).upload(file, patience=patience_s(PATIENCE_S))
                file.unlink()
