from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.training.conftest import MakeTrial, Recorder
from training import checkpoint
from training.checkpoint import CheckpointError
from training.config import TrialConfig, UnfreezingConfig
from training.export import export
from training.loop import train
from training.reporter import Evaluation
from training.tasks import TASKS
from training.workspace import Workspace


@pytest.fixture
def config(make_trial: MakeTrial) -> TrialConfig:
    return make_trial(epochs=3.0, unfreezing=UnfreezingConfig(schedule="gradual", depth=2))


@pytest.fixture
def evaluation(config: TrialConfig, workspace: Workspace, tmp_path: Path) -> Evaluation:
    told = Recorder()
    train(config, workspace=workspace, reporter=told, directory=tmp_path / "trial")
    return told.evaluations[-1]


def test_the_export_is_the_model_that_was_measured(
    config: TrialConfig, evaluation: Evaluation, workspace: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "best"
    export(config, Path(evaluation.checkpoint), out)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.label2id == {"negative": 0, "positive": 1}
    assert (out / "model.safetensors").is_file()
    assert not list(out.glob("*.bin"))
    assert [path.name for path in out.parent.iterdir()] == ["best"]

    # Bit-identical weights: the checkpoint's, and the pretrained ones where nothing thawed.
    setting = workspace.open(config)
    delta = checkpoint.load_weights(Path(evaluation.checkpoint), setting.fingerprint)
    for name, parameter in model.named_parameters():
        expected = delta.get(name, setting.blocks.model.get_parameter(name))
        assert torch.equal(parameter, expected), name

    # The reader's own way, from text to metric, gives the figures of the leaderboard.
    rows = [json.loads(line) for line in Path(config.data.validation).read_text().splitlines()]
    encoded = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=24, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**encoded).logits.numpy()
    labels = np.array([model.config.label2id[row["label"]] for row in rows])
    metrics = TASKS["sequence-classification"].compute(logits, labels)
    for name, value in metrics.items():
        assert value == pytest.approx(evaluation.metrics[f"eval/{name}"], abs=5e-5)
    assert evaluation.metrics["eval/accuracy"] != 0.5


def test_a_directory_that_is_not_empty_is_refused(
    config: TrialConfig, evaluation: Evaluation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not empty") as error:
        export(config, Path(evaluation.checkpoint), out)
    assert str(error.value) == f"{out}: is there already and not empty; give a new directory"
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="not empty"):
        export(config, Path(evaluation.checkpoint), out / "thesis.txt")
    empty = tmp_path / "empty"
    empty.mkdir()
    export(config, Path(evaluation.checkpoint), empty)
    assert (empty / "config.json").is_file()


def test_a_checkpoint_that_cannot_be_used(
    config: TrialConfig, evaluation: Evaluation, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        export(config, tmp_path / "absent", tmp_path / "out")
    (Path(evaluation.checkpoint) / "weights-00000-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cut short or altered"):
        export(config, Path(evaluation.checkpoint), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
