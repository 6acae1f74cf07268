"""Commands that are given a dashboard's address: what is sent there, and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.jobs import client
from cluster.jobs.package import Submission
from cluster.jobs.remote import Answer
from tests.cli import Thaw, caller, write_sweep

HERE = "http://127.0.0.1:9"
Sent = list[tuple[list[str], Submission | None]]


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thaw:
    return caller(monkeypatch, capsys)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What reaches the cluster, which answers with exit code 1."""
    found: Sent = []

    class Jobs:
        def __init__(self, address: str) -> None:
            assert address == HERE

        def check_environment(self) -> None:
            pass

        def call(
            self, arguments: Sequence[str], storage: str | None = None, sweep: Submission | None = None
        ) -> Answer:
            assert (storage is not None) == any("--storage" in part for part in arguments)
            found.append((list(arguments), sweep))
            return Answer(code=1, out="out", err="err")

    monkeypatch.setattr(client, "Jobs", Jobs)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["trials", "x", "--json"],
        ["list"],
        ["enqueue", "x", "learning_rate=1e-4", "--storage", "s3://b/p"],
        ["export", "x", "-o", "s3://b/model"],
        ["export", "x", "--output=/mnt/model"],
    ],
)
def test_what_reads_or_steers_is_run_there(thaw: Thaw, sent: Sent, arguments: list[str]) -> None:
    for address in (["--address", HERE], [f"--address={HERE}"]):
        ended = thaw(*address, *arguments)
        assert (ended.code, ended.out, ended.err) == (1, "out", "err")
    assert sent == [(arguments, None)] * 2


def test_resume_goes_on_there_as_a_job(thaw: Thaw, sent: Sent) -> None:
    arguments = ["resume", "x", "--set", "search.trials=9", "--storage", "s3://b/p"]
    ended = thaw(*arguments, "--detach", "--address", HERE)
    assert ended.code == 1
    assert sent == [([*arguments, "--as-job"], None)]
    here = thaw("resume", "x", "--detach")
    assert here.code == 2
    assert "--detach: needs the --address" in here.err


def test_doctor_examines_that_cluster_with_the_sweep_that_lies_here(
    thaw: Thaw, sent: Sent, tmp_path: Path
) -> None:
    file = write_sweep(tmp_path)
    assert thaw("doctor", file, "--set", "name=other", "--json", "--address", HERE).code == 1
    [(arguments, sweep)] = sent
    assert arguments == ["doctor", "sweep.yaml", "--address", "auto", "--json"]
    assert sweep is not None
    assert sweep.name == "other"
    assert sweep.files["data/train.jsonl"] == tmp_path / "train.jsonl"
    sent.clear()
    thaw("doctor", "--storage=/mnt/runs", "--address", HERE)
    assert sent == [(["doctor", "--address", "auto", "--storage", "/mnt/runs"], None)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "quickstart"], "thaw submit FILE"),
        (["resume", "x", "--storage", "s3://key:word@bucket"], "--storage: must not hold a user or password"),
        (["export", "x", "-o", "model"], "--output: is written by the cluster"),
        (["export", "x", "--output=./model"], "--output: is written by the cluster"),
        (["plan", "quickstart"], "--address"),
        (["gc"], "--address"),
    ],
)
def test_what_makes_no_sense_there_is_refused(
    thaw: Thaw, sent: Sent, arguments: list[str], said: str
) -> None:
    ended = thaw(*arguments, "--address", HERE)
    assert ended.code == 2
    assert said in ended.err
    assert sent == []
