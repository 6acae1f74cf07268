"""SIGKILL at twenty random moments of a sweep: it ends as if nothing had happened."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import time
from pathlib import Path

import pytest

from search.study import Study, TrialState
from tests.search import killable

KILLS = 20
SEED = 5


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_a_sweep_killed_twenty_times_ends_the_same(tmp_path: Path, mode: str) -> None:
    whole = killable.sweep(tmp_path / "whole", mode, SEED)
    states = {trial.state for trial in whole}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}

    rng = random.Random(SEED)
    ledger = tmp_path / "killed" / "study.journal"
    size = (tmp_path / "whole" / "study.journal").stat().st_size
    # Forked from a process that has imported everything: a sweep begins at once.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.search.killable"])
    kills = 0
    finished_before: set[int] = set()
    rerun: set[int] = set()
    for moment in sorted(rng.uniform(0, size) for _ in range(KILLS)):
        process = processes.Process(target=killable.sweep, args=(tmp_path / "killed", mode, SEED))
        process.start()
        while process.is_alive() and (not ledger.exists() or ledger.stat().st_size < moment):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        seen = trained(tmp_path / "killed")
        process.kill()
        process.join()
        kills += process.exitcode == -9
        if ledger.exists() and ledger.stat().st_size:
            ended = {t.number for t in Study.read(ledger).trials() if t.state.finished}
            rerun |= {number for number, _ in trained(tmp_path / "killed")[len(seen) :]} & finished_before
            finished_before = ended
    assert kills >= KILLS - 2, "it was over before"
    after = killable.sweep(tmp_path / "killed", mode, SEED)

    assert [t.params for t in after] == [t.params for t in whole]
    assert after == whole  # states, results, decisions: nothing lost, nothing doubled
    assert not rerun
    steps: dict[int, list[float]] = {}
    for number, epochs in trained(tmp_path / "killed"):
        steps.setdefault(number, []).append(epochs)
    again = 0
    for number, epochs in steps.items():
        assert epochs[0] == 1
        assert epochs[-1] == whole[number].epochs
        for one, following in itertools.pairwise(epochs):
            assert following in (one, one + 1), f"trial {number} went from epoch {one} to {following}"
            again += following == one
    assert again <= kills  # at most the evaluation that was under way, each time


def trained(directory: Path) -> list[tuple[int, float]]:
    """Trial and epoch of every evaluation that was done, in order."""
    path = directory / "trained"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(number), float(epochs)) for number, epochs in (line.split() for line in lines)]
