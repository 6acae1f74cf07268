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
from search.spec import SweepSpec
from search.study import TrialRecord, TrialState
from search.sweep import Sweep
from tests.conftest import REPOSITORY

Make = Callable[..., SweepSpec]
Run = Callable[[SweepSpec, Path], Sweep]


def course(trial: TrialRecord) -> list[tuple[float, dict[str, float]]]:
    return [(result.epochs, dict(result.metrics)) for result in trial.results]


def test_same_seed_one_at_a_time_gives_the_same_trials_and_the_same_metrics(
    make_spec: Make, run_sweep: Run, tmp_path: Path
) -> None:
    first = run_sweep(make_spec(), tmp_path / "a").read().trials()
    second = run_sweep(make_spec(), tmp_path / "b").read().trials()
    assert [trial.state for trial in first] == [TrialState.COMPLETE] * 3
    assert [trial.params for trial in first] == [trial.params for trial in second]
    assert [course(trial) for trial in first] == [course(trial) for trial in second]
    assert len({json.dumps(dict(trial.params)) for trial in first}) == 3
    for trial in first:
        assert [result.epochs for result in trial.results] == [0.5, 1.0]
        assert trial.phases[0].start_epoch == 0
        assert all(math.isfinite(value) for result in trial.results for value in result.metrics.values())


def test_best_model_is_what_the_leaderboard_says(make_spec: Make, run_sweep: Run, tmp_path: Path) -> None:
    spec = make_spec(tracking={"wandb": {"mode": "offline"}}, checkpoints={"keep": 1})
    made = run_sweep(spec, tmp_path / "runs")
    study = made.read()
    champion = study.best()
    assert champion is not None
    directory = sweeps.export_best(made, champion)

    model = AutoModelForSequenceClassification.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = [json.loads(line) for line in Path(spec.data.validation).read_text().splitlines()]
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
    left = {str(path.parent) for path in made.directory.glob("trials/*/*/manifest.json")}
    assert left == {r.checkpoint for t in study.trials() for r in t.results if r.checkpoint}
    assert len(left) == 1
    assert len(list((made.directory / "wandb").glob("offline-run-*/*.wandb"))) == 3
    logged = [json.loads(line) for line in (made.directory / "metrics.jsonl").read_text().splitlines()]
    assert {event["trial"] for event in logged if event["kind"] == "finish"} == {0, 1, 2}
    assert any("train/loss" in event["metrics"] for event in logged if event["kind"] == "log")
    assert not (made.directory / ".ray").exists()
    (sitting,) = study.sittings  # what the driver used, of the one node there is
    assert sitting.seconds > max(trial.seconds for trial in study.trials())
    assert sitting.node_seconds == {"default": pytest.approx(sitting.seconds)}


def test_two_workers_a_trial_agree_with_one(make_spec: Make, run_sweep: Run, tmp_path: Path) -> None:
    training = {"epochs": 1, "evaluations_per_epoch": 1, "batch_size": 16, "dropout": 0.0}
    one = run_sweep(make_spec(training=training), tmp_path / "one").read().trials()
    spec = make_spec(training=training, resources={"workers": 2, "max_concurrent": 1})
    two = run_sweep(spec, tmp_path / "two").read().trials()
    for alone, together in zip(one, two, strict=True):
        assert alone.params == together.params
        assert together.state is TrialState.COMPLETE
        assert math.isclose(
            alone.results[-1].metrics["eval/loss"], together.results[-1].metrics["eval/loss"], abs_tol=1e-4
        )


def test_a_trial_that_fails_leaves_the_gang_to_the_next(
    make_spec: Make, run_sweep: Run, tmp_path: Path
) -> None:
    parameters = {
        "learning_rate": {"values": [1e-4, 1e-3]},
        "unfreezing.points": {"values": [[0.5], [0.2, 0.4]]},
    }
    spec = make_spec(
        training={"epochs": 1, "batch_size": 16, "unfreezing": {"schedule": "gradual", "depth": 2}},
        parameters=parameters,
        search={
            "metric": {"name": "eval/accuracy", "goal": "maximize"},
            "sampler": "random",
            "scheduler": "none",
            "trials": 6,
            "seed": 3,
        },
    )
    made = sweeps.create(spec, tmp_path / "runs")
    from search.preflight import Facts
    from search.progress import Progress

    # The checks would refuse the space: one point for two blocks cannot be.
    facts = Facts(num_blocks=6, num_train=160, num_validation=60, label_names=("a", "b"), data_fingerprint="")
    session.run(made, facts=facts, fits=1, progress=Progress())
    trials = made.read().trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.FAILED}
    for trial in trials:
        assert (trial.state is TrialState.FAILED) == (len(trial.params["unfreezing.points"]) == 1)
        assert trial.state is TrialState.COMPLETE or "points" in str(trial.error)


def test_a_trial_that_diverges_is_no_crash(make_spec: Make, run_sweep: Run, tmp_path: Path) -> None:
    spec = make_spec(
        training={"epochs": 1, "batch_size": 8, "optimizer": "sgd"},
        # Weights whose sum is beyond fp32: the loss is infinity over infinity.
        parameters={"class_weights": {"values": ["none", [1e38, 1e38]]}},
        search={
            "metric": {"name": "eval/accuracy", "goal": "maximize"},
            "sampler": "random",
            "scheduler": "none",
            "trials": 4,
            "seed": 0,
        },
    )
    trials = run_sweep(spec, tmp_path / "runs").read().trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.DIVERGED}
    for trial in trials:
        assert (trial.state is TrialState.DIVERGED) == (trial.params["class_weights"] != "none")
        assert trial.state is TrialState.COMPLETE or "training loss is nan" in str(trial.error)


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
