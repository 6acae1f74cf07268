"""Label smoothing, class weights, activation checkpointing: what a step minimises, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.bert.modeling_bert import BertSelfAttention

from tests.training.conftest import Crew, MakeTrial, Recorder, assert_same, largest_difference
from tests.training.reference import reference
from tests.training.trials import GROWING, run, run_there
from training.config import ZeroConfig
from training.loop import train
from training.workspace import Workspace

SETTINGS: dict[str, Any] = {"epochs": 1.5, "unfreezing": GROWING, "adam_epsilon": 1e-3}


@pytest.mark.parametrize("micro", [8, 3])
@pytest.mark.parametrize(
    ("smoothing", "weights"),
    [(0.2, "none"), (0.0, [0.5, 3.0]), (0.2, [0.5, 3.0]), (0.0, "balanced")],
    ids=["smoothing", "weights", "both", "balanced"],
)
def test_the_loss_is_torchs_over_the_global_batch(
    smoothing: float, weights: Any, micro: int, make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    config = make_trial(label_smoothing=smoothing, class_weights=weights, micro_batch_size=micro, **SETTINGS)
    state, _ = run(config, workspace, tmp_path / "trial")
    setting = workspace.open(config)
    each = None
    if weights == "balanced":
        counts = np.bincount(setting.data.train.labels)
        assert counts[0] != counts[1]
        each = torch.tensor(44 / (2 * counts), dtype=torch.float32)
    elif weights != "none":
        each = torch.tensor(weights)
    assert largest_difference(state.weights, reference(config, setting, each)[1]) < 1e-6
    plain = replace(config, training=replace(config.training, label_smoothing=0.0, class_weights="none"))
    assert largest_difference(state.weights, reference(plain, setting)[1]) > 1e-4


def test_class_weights_on_two_workers(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path, pair: Crew
) -> None:
    config = make_trial(label_smoothing=0.1, class_weights=[0.5, 3.0], log_every=1, **SETTINGS)
    alone, told = run(config, workspace, tmp_path / "alone")
    (state, losses, _), _ = pair.run(run_there, config, tmp_path / "pair")
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in told.losses], abs=1e-5)
    assert largest_difference(state.weights, alone.weights) < 1e-5


def test_class_weights_of_the_wrong_length(
    make_trial: MakeTrial, workspace: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="class_weights") as error:
        train(
            make_trial(class_weights=[1.0, 2.0, 3.0]),
            workspace=workspace,
            reporter=Recorder(),
            directory=tmp_path,
        )
    assert str(error.value) == (
        "class_weights: 3 weights for 2 classes; give one for each of negative, positive, in this order"
    )


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_nothing(
    dropout: float,
    stage: int,
    make_trial: MakeTrial,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[bool] = []
    forward = BertSelfAttention.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self.training)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BertSelfAttention, "forward", counted)
    config = make_trial(dropout=dropout, log_every=1, zero=ZeroConfig(stage=stage), **SETTINGS)  # type: ignore[arg-type]
    expected, told = run(config, workspace, tmp_path / "kept")
    # Two thawed blocks for three steps, three for another three.
    assert calls.count(True) == 15
    calls.clear()
    config = replace(config, training=replace(config.training, activation_checkpointing=True))
    state, told_again = run(config, workspace, tmp_path / "recomputed")
    assert calls.count(True) == 30
    assert told_again.losses == told.losses
    assert told_again.scores == told.scores
    assert_same(state.weights, expected.weights)
