"""Whole trials on the tiny model, for the tests of several subjects."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tests.training.conftest import Killed, Recorder
from training import checkpoint
from training.checkpoint import State
from training.config import PhaseConfig, TrialConfig, UnfreezingConfig
from training.loop import train
from training.prefix import Feed
from training.team import Team
from training.workspace import Setting, Workspace


def run(
    config: TrialConfig, workspace: Workspace, directory: Path, **recorder: Any
) -> tuple[State, Recorder]:
    """A trial to its end, or its death; its newest checkpoint and what it told."""
    told = Recorder(**recorder)
    with suppress(Killed):
        train(config, workspace=workspace, reporter=told, directory=directory)
    found = checkpoint.newest(directory, identity(config, workspace.open(config)))
    assert found is not None
    return found.state, told


def identity(config: TrialConfig, setting: Setting) -> checkpoint.Identity:
    return checkpoint.identity(config, model=setting.fingerprint, data=setting.data.fingerprint)


def start_of(config: TrialConfig, setting: Setting) -> dict[str, Tensor]:
    """All weights before the first step."""
    named = {name: tensor.detach().clone() for name, tensor in setting.blocks.model.named_parameters()}
    return named | setting.fresh_weights(config.seed)


def listed(*phases: tuple[float, list[Any]]) -> UnfreezingConfig:
    made = [PhaseConfig(start=start, thaw=thaw) for start, thaw in phases]
    return UnfreezingConfig(schedule="phases", phases=made)


SHRINKING = listed((0.0, ["head", 0, 1, 2]), (0.5, ["head", 2]), (1.0, ["head"]))
GROWING = listed((0.0, ["head"]), (0.5, ["head", 1, 2]), (1.0, ["all"]))
REFREEZING = listed((0.0, ["head", 0]), (0.5, [2]), (1.0, ["head", "embeddings"]))


def batch_of(feed: Feed, name: str, indices: np.ndarray) -> tuple[dict[str, Any], Tensor]:
    """Inputs and labels of some examples, from a split that may not be open yet."""
    feed.open(name)
    return feed.batch(feed.rows(name, indices))


def run_there(team: Team, config: TrialConfig, directory: Path) -> tuple[State, list[Any], list[Any]]:
    state, told = run(config, Workspace(team), directory)
    return state, told.losses, told.scores
