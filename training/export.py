"""A checkpoint as a Hugging Face directory: safetensors, tokenizer, label names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from training import checkpoint
from training.config import TrialConfig
from training.models import load_tokenizer
from training.workspace import load


def export(config: TrialConfig, path: Path, directory: Path) -> None:
    """Write the model of the checkpoint at `path` to `directory`, whole or not at all.

    `AutoModelForSequenceClassification.from_pretrained(directory)` reads it.

    Raises:
        CheckpointError: if the checkpoint cannot be used.
        ValueError: if `directory` holds something already.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory}: is there already and not empty; give a new directory")
    setting = load(config)
    weights = checkpoint.load_weights(path, setting.fingerprint)
    model: Any = setting.blocks.model
    with torch.no_grad():
        for name, tensor in weights.items():
            model.get_parameter(name).copy_(tensor)
    names = setting.data.label_names
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    draft = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    load_tokenizer(config.model).save_pretrained(draft)
    if directory.exists():
        directory.rmdir()
    draft.rename(directory)
