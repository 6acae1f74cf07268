"""What is found out before anything starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from search.loading import load
from search.mirror import open_storage
from search.preflight import check, check_writable, corners
from search.problems import SpecError
from search.spec import SweepSpec
from tests.cli import ROWS, write_rows, write_sweep
from tests.conftest import MODEL


def spec(directory: Path, parameters: dict[str, Any] | None = None, **sections: Any) -> SweepSpec:
    if parameters is not None:
        sections["parameters"] = parameters
    return load(str(write_sweep(directory, **sections)))


def problems(wrong: SweepSpec) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        check(wrong)
    return caught.value.problems


def test_the_facts(tmp_path: Path) -> None:
    facts = check(spec(tmp_path))
    assert (facts.num_blocks, facts.num_train, facts.num_validation) == (6, 8, 4)
    assert facts.label_names == ("neg", "pos")
    assert check(spec(tmp_path)) == facts
    write_rows(tmp_path / "train.jsonl", ROWS[:6])
    other = check(load(str(tmp_path / "tiny.yaml")))
    assert other.num_train == 6
    assert other.data_fingerprint != facts.data_fingerprint


def test_half_precision_is_for_gpus(tmp_path: Path) -> None:
    """DeepSpeed refuses it on most CPUs, when a trial has begun."""
    half = {"training": {"precision": "fp16"}}
    assert problems(spec(tmp_path, **half)) == (
        "training.precision: fp16 needs GPUs; set resources.gpus_per_worker, or take fp32 or bf16",
    )
    check(spec(tmp_path, **half, resources={"gpus_per_worker": 1}))
    choice = {"parameters": {"precision": {"values": ["fp32", "fp16"]}}}
    assert problems(spec(tmp_path, **choice)) == (
        "parameters.precision: fp16 needs GPUs; set resources.gpus_per_worker, or take fp32 or bf16",
    )
    check(spec(tmp_path, training={"precision": "bf16"}))


def too_deep(path: str, depth: int) -> str:
    return f"{path}: {depth} is deeper than the model, which has 6 blocks; use 1 to 6"


SCHEDULE = {"values": ["head", "top", "gradual"]}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"unfreezing.schedule": SCHEDULE, "unfreezing.depth": {"min": 1, "max": 6}}, None),
        (
            {"unfreezing.schedule": SCHEDULE, "unfreezing.depth": {"min": 1, "max": 7}},
            too_deep("parameters.unfreezing.depth", 7),
        ),
        (
            {"unfreezing.schedule": SCHEDULE, "unfreezing.depth": {"value": 8}},
            too_deep("parameters.unfreezing.depth", 8),
        ),
        ({"unfreezing.schedule": {"values": ["head", "full"]}, "unfreezing.depth": {"value": 8}}, None),
        (
            {
                "unfreezing.schedule": SCHEDULE,
                "unfreezing.depth": {"value": 8, "when": {"unfreezing.schedule": "head"}},
            },
            None,  # never used where it is too deep
        ),
        (
            {
                "unfreezing.schedule": SCHEDULE,
                "unfreezing.depth": {"values": [2, 8], "when": {"batch_size": 32}},
                "batch_size": {"min": 8, "max": 64},
            },
            too_deep("parameters.unfreezing.depth", 8),
        ),
        (
            {
                "unfreezing.schedule": SCHEDULE,
                "unfreezing.points": {"values": [[0.1, 0.5], [0.5, 0.1]]},
                "unfreezing.depth": {"value": 2},
            },
            "parameters.unfreezing.points: [0.5, 0.1] must ascend; sort them and drop repeats",
        ),
        (
            {
                "unfreezing.schedule": {"value": "phases"},
                "unfreezing.phases": {"value": [{"start": 0, "thaw": ["head"]}, {"start": 2, "thaw": [9]}]},
            },
            "parameters.unfreezing.phases[1].thaw: block 9 is not in the model, which has 6 blocks; "
            "use -6 to 5",
        ),
        (
            {
                "epochs": {"values": [1, 4]},
                "unfreezing.schedule": {"value": "phases"},
                "unfreezing.phases": {"value": [{"start": 0, "thaw": ["head"]}, {"start": 2, "thaw": [5]}]},
            },
            "parameters.unfreezing.phases[1].start: 2 is not before the end of training at epoch 1; "
            "use less than 1, or drop the phase",
        ),
    ],
)
def test_schedules_are_tried_at_the_corners_of_the_space(
    tmp_path: Path, parameters: dict[str, Any], expected: str | None
) -> None:
    asked = spec(tmp_path, parameters)
    if expected is None:
        check(asked)
    else:
        assert problems(asked) == (expected,)


def test_a_constant_of_zero_is_looked_at_as_zero(tmp_path: Path) -> None:
    checked = spec(tmp_path, {"learning_rate": {"value": 1e-4}, "zero.stage": {"value": 0}})
    assert [corner.training.zero.stage for corner in corners(checked)] == [0]


def test_every_model_and_column_that_may_be_drawn_is_looked_at(tmp_path: Path) -> None:
    # What the sections say is never used where a parameter has the same path.
    asked = spec(
        tmp_path,
        {"model.name": {"values": [MODEL]}, "task.text": {"value": "text"}},
        model={"name": "./nowhere"},
        task={"text": "nothing"},
    )
    assert check(asked).num_blocks == 6
    assert problems(spec(tmp_path, {"task.max_length": {"min": 2, "max": 64}})) == (
        "task.max_length: 2 leaves no room for text beside 2 special tokens; use at least 3",
    )


def test_a_missing_model_is_told_once(tmp_path: Path) -> None:
    (line,) = problems(spec(tmp_path, model={"name": "./nowhere"}))
    assert line.startswith("model.name: ./nowhere does not exist; ")


def test_checking_a_directory_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "deeper")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"^--output: .*/file/new cannot be written \(a file is in the way\); "
    ):
        check_writable(tmp_path / "file" / "new", "--output")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="cannot be written"):
        check_writable(tmp_path / "dangling" / "new")


def test_storage_is_a_directory_or_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_storage("./runs") == tmp_path / "runs"
    assert open_storage("~/runs") == tmp_path / "home" / "runs"
    assert open_storage(f"file://{tmp_path}/runs") == tmp_path / "runs"
    assert open_storage(str(tmp_path / "a" / ".." / "b")) == tmp_path / "b"
    for wrong in ("ftp://bucket/x", "s3://"):
        with pytest.raises(ValueError, match=r"^--storage: "):
            open_storage(wrong)
    for empty in ("", " ", "file://"):
        with pytest.raises(ValueError, match=r"^--storage: must not be empty"):
            open_storage(empty)
    assert os.listdir(tmp_path) == []


def test_early_stopping_on_a_metric_that_is_not_reported(tmp_path: Path) -> None:
    stopping = {"patience": 1, "metric": "eval/acuracy"}
    (problem,) = problems(spec(tmp_path, training={"epochs": 1, "early_stopping": stopping}))
    assert problem.startswith("training.early_stopping.metric: ")
    assert problem.endswith("did you mean eval/accuracy?")


def test_an_optimizer_that_zero_would_cut_apart(tmp_path: Path) -> None:
    optimizer = {"values": ["adamw", "adafactor"]}
    (problem,) = problems(
        spec(
            tmp_path,
            {"learning_rate": {"min": 1e-5, "max": 1e-3}, "optimizer": optimizer},
            training={"epochs": 1, "zero": {"stage": 2}},
        )
    )
    assert "zero.stage: 2 cuts matrices apart" in problem
