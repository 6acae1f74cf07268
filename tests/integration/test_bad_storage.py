"""Mistakes about where sweeps are kept and what they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from search.changes import ALLOWED
from search.loading import load
from search.sweep import create
from tests.cli import ROWS, Thaw, write_rows, write_sweep
from tests.integration.refusals import files, refused, run


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
