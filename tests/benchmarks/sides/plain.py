"""What both rivals are made of: Transformers and torch as their documentation has them, nothing of Thaw's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.benchmarks.jobs import Job, Task

EVALUATED_TOGETHER = 64


def quiet() -> None:
    """No bars, no news of a fresh head."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def rows(job: Job, split: str, **padding: Any) -> list[dict[str, Any]]:
    """The examples of a split, tokenised: `input_ids`, `attention_mask`, `labels`."""
    path, count = (job.train, job.examples) if split == "train" else (job.validation, job.validated)
    read = [json.loads(line) for line in Path(path).read_text().splitlines()[:count]]
    names = sorted({"negative", "positive"})
    tokens = tokenizer(job)(
        [row["text"] for row in read], truncation=True, max_length=job.max_length, **padding
    )
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": names.index(row["label"])}
        for ids, mask, row in zip(tokens["input_ids"], tokens["attention_mask"], read, strict=True)
    ]


def tokenizer(job: Job) -> Any:
    """That of the model."""
    return transformers.AutoTokenizer.from_pretrained(job.directory)


def model(job: Job, seed: int) -> Any:
    """The pretrained model with a head drawn from `seed`."""
    transformers.set_seed(seed)
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        job.directory, num_labels=2, dtype=torch.float32
    )


def thaw(module: Any, thawed: Sequence[str]) -> None:
    """Let the parameters train whose names begin so, and no others."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(thawed)))


def warmup_steps(job: Job, total: int) -> int:
    """Over which the learning rate rises."""
    return math.ceil(job.defaults.warmup_ratio * total - 1e-9)


def total_steps(job: Job, task: Task) -> int:
    """Of one epoch."""
    return -(-job.examples // task.batch_size)


def accuracy(logits: Any, labels: Any) -> float:
    """Share of the examples whose class is the likeliest."""
    return float((logits.argmax(-1) == labels).mean())
