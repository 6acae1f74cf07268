"""A whole sweep: Ray Tune over Optuna, gangs of Ray Train, DeepSpeed engines, and what they leave."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from search import session
from search import sweep as sweeps
from search.preflight import Facts
from search.progress import Progress
from search.spec import SweepSpec
from search.study import TrialRecord, TrialState
from search.sweep import Sweep
from tests.conftest import REPOSITORY
from tests.integration.conftest import Course, course

Make = Callable[..., SweepSpec]
Run = Callable[[SweepSpec, Path], Sweep]
Plainly = Callable[[SweepSpec], list[tuple[TrialRecord, Course]]]


@pytest.fixture(scope="module")
def small(make_spec: Make, run_sweep: Run, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of three trials, one at a time, of which only the best checkpoint is kept."""
    spec = make_spec(tracking={"wandb": {"mode": "offline"}}, checkpoints={"keep": 1})
    return run_sweep(spec, tmp_path_factory.mktemp("runs"))


def test_a_seed_gives_the_same_trials_and_the_same_metrics_to_the_bit_in_a_gang_and_without_ray(
    small: Sweep, plainly: Plainly
) -> None:
    trials = small.read().trials()
    again = plainly(small.spec)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert [trial.params for trial in trials] == [trial.params for trial, _ in again]
    assert [course(trial) for trial in trials] == [expected for _, expected in again]
    assert len({json.dumps(dict(trial.params)) for trial in trials}) == 3
    for trial in trials:
        assert [result.epochs for result in trial.results] == [0.5, 1.0]
        assert trial.phases[0].start_epoch == 0
        assert all(math.isfinite(value) for result in trial.results for value in result.metrics.values())


def test_best_model_is_what_the_leaderboard_says(small: Sweep) -> None:
    study = small.read()
    champion = study.best()
    assert champion is not None
    directory = sweeps.export_best(small, champion)

    model = AutoModelForSequenceClassification.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = [json.loads(line) for line in Path(small.spec.data.validation).read_text().splitlines()]
    tokens = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=32, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        guesses = model(**tokens).logits.argmax(-1)
    right = np.mean(
        [model.config.id2label[int(g)] == row["label"] for g, row in zip(guesses, rows, strict=True)]
    )
    assert round(float(right), 4) == round(float(champion.value("eval/accuracy", "maximize") or 0), 4)

    # Only the best trial's checkpoint is left, on disk and in the ledger.
    left = {str(path.parent) for path in small.directory.glob("trials/*/*/manifest.json")}
    assert left == {r.checkpoint for t in study.trials() for r in t.results if r.checkpoint}
    assert len(left) == 1
    assert len(list((small.directory / "wandb").glob("offline-run-*/*.wandb"))) == 3
    logged = [json.loads(line) for line in (small.directory / "metrics.jsonl").read_text().splitlines()]
    assert {event["trial"] for event in logged if event["kind"] == "finish"} == {0, 1, 2}
    assert any("train/loss" in event["metrics"] for event in logged if event["kind"] == "log")
    assert not (small.directory / ".ray").exists()
    (sitting,) = study.sittings  # what the driver used, of the one node there is
    assert sitting.seconds > max(trial.seconds for trial in study.trials())
    assert sitting.node_seconds == {"default": pytest.approx(sitting.seconds)}


@pytest.fixture(scope="module")
def troubled(make_spec: Make, ray_nodes: object, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of every combination of settings that fail, that diverge, and that are sound, in this order."""
    spec = make_spec(
        training={
            "epochs": 1,
            "batch_size": 8,
            "optimizer": "sgd",
            "unfreezing": {"schedule": "gradual", "depth": 2},
        },
        parameters={
            "unfreezing.points": {"values": [[0.5], [0.2, 0.4]]},
            # Weights whose sum is beyond fp32: the loss is infinity over infinity.
            "class_weights": {"values": [[1e38, 1e38], "none"]},
        },
        search={
            "metric": {"name": "eval/accuracy", "goal": "maximize"},
            "sampler": "grid",
            "scheduler": "none",
            "trials": 4,
        },
    )
    made = sweeps.create(spec, tmp_path_factory.mktemp("runs"))
    # The checks would refuse the space: one point for two blocks cannot be.
    facts = Facts(num_blocks=6, num_train=160, num_validation=60, label_names=("a", "b"), data_fingerprint="")
    session.run(made, facts=facts, fits=1, gpus_per_worker=0.0, progress=Progress())
    return made


def test_a_trial_that_fails_leaves_the_gang_to_the_next(troubled: Sweep) -> None:
    trials = troubled.read().trials()
    assert [trial.state for trial in trials] == [
        TrialState.FAILED,
        TrialState.FAILED,
        TrialState.DIVERGED,
        TrialState.COMPLETE,
    ]
    for trial in trials[:2]:
        assert len(trial.params["unfreezing.points"]) == 1
        assert "points" in str(trial.error)


def test_a_trial_that_diverges_is_no_crash(troubled: Sweep) -> None:
    _, _, diverged, complete = troubled.read().trials()
    assert diverged.params["class_weights"] == [1e38, 1e38]
    assert diverged.state is TrialState.DIVERGED
    assert "training loss is nan" in str(diverged.error)
    assert complete.params["class_weights"] == "none"
    assert complete.state is TrialState.COMPLETE


def test_a_sweep_whose_budget_is_used_up_says_so_and_starts_no_ray(
    make_spec: Make, run_sweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {
        "metric": {"name": "eval/accuracy", "goal": "maximize"},
        "sampler": "random",
        "trials": 3,
        "budget": {"hours": 0.001},  # less than a gang needs to start
    }
    made = run_sweep(make_spec(search=search), tmp_path / "runs")
    [trial] = made.read().trials()
    assert trial.results
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")  # Ray cannot start

    def resume(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "launch.py", "resume", "small", "--storage", str(tmp_path / "runs"), *options],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    again = resume()
    assert again.returncode == 0, again.stderr
    assert "nothing started: search.budget.hours: " in again.stdout
    assert "resume small --set search.budget.hours=VALUE --storage" in again.stdout
    assert (tmp_path / "runs" / "small" / "best" / "model.safetensors").exists()
    more = resume("--set", "search.budget.hours=9")
    assert more.returncode == 1
    assert "Ray did not start" in more.stderr
    assert [t.number for t in made.read().trials()] == [0]
