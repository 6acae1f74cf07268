"""The store as its users meet it: real processes that race, die and come back, and full or foreign disks."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.conftest import MakeTrial
from tests.training.prefix.conftest import CPU, FP32, computed, frozen_of, shelved
from tests.training.trials import batch_of
from training.config import PrefixStoreConfig, TrialConfig
from training.prefix import clear, feed, shelves
from training.prefix import entries as files
from training.prefix.compute import Probe, Recipe
from training.prefix.store import roots_of


def _work(config: TrialConfig, cache: Path, slowed_s: float, connection: Any) -> None:
    """A process that needs a boundary, and says how many canonical batches it computed for it."""
    torch.set_num_threads(1)
    frozen = frozen_of(config, cache)
    frozen.recipe("train", 2, FP32, CPU)  # with the probe, which is not what is counted
    connection.send("ready")
    connection.recv()
    run, ran = Recipe.run, []

    def counted(self: Recipe, batch: Any) -> Any:
        ran.append(batch)
        time.sleep(slowed_s)
        connection.send("computing")
        return run(self, batch)

    Recipe.run = counted  # type: ignore[method-assign]
    entry = frozen.entry("train", 2, FP32, CPU)
    assert entry is not None
    connection.send((len(ran), entry.states[0].numpy().tobytes()))
    connection.recv()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the workers have: states are kept by the number of threads that computed them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Worker:
    def __init__(self, config: TrialConfig, cache: Path, slowed_s: float = 0.0) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(config, cache, slowed_s, theirs), daemon=True)
        self.process.start()

    def hear(self, what: str | None = None) -> Any:
        """The next thing it says; with `what`, once it says that; without, the result."""
        while True:
            assert self.connection.poll(120), "no answer"
            said = self.connection.recv()
            if said == what or (what is None and said not in ("ready", "computing")):
                return said


@pytest.mark.usefixtures("one_thread")
def test_of_processes_that_race_one_computes_and_none_waits_for_the_dead(
    make_trial: MakeTrial, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_trial()
    expected = computed(frozen_of(config, cache), 2).numpy().tobytes()
    doomed = Worker(config, cache, slowed_s=0.2)
    racers = [Worker(config, cache), Worker(config, cache)]
    for worker in (doomed, *racers):
        worker.hear("ready")
    # Killed half-way through writing, with the other two waiting for it.
    doomed.connection.send("go")
    doomed.hear("computing")
    for worker in racers:
        worker.connection.send("go")
    doomed.hear("computing")
    assert not shelved(cache)
    assert doomed.process.pid is not None
    os.kill(doomed.process.pid, signal.SIGKILL)
    results = [worker.hear() for worker in racers]
    assert [states for _, states in results] == [expected, expected]
    counts = sorted(count for count, _ in results)
    assert counts[0] == 0
    assert counts[1] > 2
    assert len(shelved(cache)) == 1
    # A later process, as after a restart of the driver, computes nothing; what the dead one left is gone.
    late = frozen_of(config, cache)
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "run", None)
        entry = late.entry("train", 2, FP32, CPU)
    assert entry is not None
    assert entry.states[0].numpy().tobytes() == expected
    entry.close()
    root = shelved(cache)[0].parent
    assert not [path for path in root.iterdir() if path.name.startswith(".") and path.is_dir()]
    # What is in use is not taken away, and is when it is free.
    freed, left = clear(cache)
    assert left > 0
    for worker in racers:
        worker.connection.send("leave")
        worker.process.join(30)
    freed, left = clear(cache)
    assert freed > 0
    assert left == 0
    doomed.process.join(10)


def test_shelves_and_their_budget(
    make_trial: MakeTrial, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored(boundary: int, **store: Any) -> set[str]:
        entry = frozen_of(make_trial(), cache, **store).entry("train", boundary, FP32, CPU)
        if entry is None:
            return set()
        entry.close()
        return {shelf for shelf, root in roots_of(cache).items() if entry.path.parent == root}

    size = 1.01 * (computed(frozen_of(make_trial(), cache), 2).nbytes + 400) / 1e9
    assert stored(2, mode="recompute") == set()
    assert stored(2, memory=0, disk=0) == set()
    assert stored(2, memory=size / 2, disk=0) == set()
    if "memory" in roots_of(cache):
        assert stored(2, memory=size) == {"memory"}
        # Another one of the size takes its place: it is worth about as much, and is asked for.
        for path in shelved(cache):
            os.utime(path, (0, time.time() - 36_000))
        assert stored(3, memory=size, disk=0) == {"memory"}
        (path,) = shelved(cache)
        assert json.loads((path / "manifest.json").read_text())["of"]["boundary"] == 3
        clear(cache)
    # These blocks may be computed faster than a disk is read; a model that takes longer is worth it.
    monkeypatch.setattr(feed, "probe", lambda recipe: Probe(rows=recipe.rows, seconds_per_token=1.0))
    assert stored(2, memory=0) == {"disk"}
    assert stored(2) == {"disk"}  # where it is found, whatever room there is elsewhere
    clear(cache)
    monkeypatch.setattr(feed, "probe", lambda recipe: Probe(rows=recipe.rows, seconds_per_token=1e-15))
    assert stored(2, memory=0) == set()


def test_what_a_dead_process_left_on_disk_is_cleared(cache: Path) -> None:
    """Its lock is with all the others, in memory; so it is for those who are not allowed memory."""
    store = shelves(PrefixStoreConfig(), cache)
    assert shelves(PrefixStoreConfig(memory=0), cache).home == store.home
    key, shape = "0" * 32, files.Shape(tokens=100, hidden=10, stacks=1, dtype=FP32)
    with files.locked(store.home, key):
        draft = files.Draft(store.roots["disk"], key, shape)
        assert clear(cache) == (0, 4000)  # it is being made
    assert draft.path.is_dir()
    assert clear(cache) == (4000, 0)
    assert not draft.path.exists()


def test_an_entry_is_found_by_one_while_another_looks_whether_it_is_read(
    make_trial: MakeTrial, cache: Path
) -> None:
    frozen = frozen_of(make_trial(), cache)
    entry = frozen.entry("train", 2, FP32, CPU)
    assert entry is not None
    entry.close()
    with (entry.path / "manifest.json").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        done = threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN))
        done.start()
        shape = files.Shape(tokens=int(frozen.data.train.offsets[-1]), hidden=10, stacks=1, dtype=FP32)
        again = files.open_entry(entry.path.parent, entry.path.name, shape)
        assert again is not None
        again.close()
        done.join()


def test_who_cleans_up_takes_no_trial_with_him(
    make_trial: MakeTrial, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft is gone when it is to be named: its states are recomputed then."""
    frozen = frozen_of(make_trial(), cache)
    run = Recipe.run

    def cleaned(self: Recipe, batch: Any) -> Any:
        for root in roots_of(cache).values():
            for draft in root.glob(".*-*"):
                shutil.rmtree(draft)
        return run(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "run", cleaned)
        assert frozen.entry("train", 2, FP32, CPU) is None
    inputs, _ = batch_of(frozen.feed(2, FP32, CPU), "train", np.array([3, 1]))
    assert inputs["states"][0].shape[0] == 2


def test_a_directory_that_somebody_else_may_have_made_is_not_used(cache: Path, tmp_path: Path) -> None:
    """Anyone can make one in shared memory, under a name that he can guess."""
    if "memory" not in roots_of(cache):
        pytest.skip("no file system in memory")
    planted = roots_of(cache)["memory"]
    (tmp_path / "theirs").mkdir()
    planted.symlink_to(tmp_path / "theirs")
    try:
        assert list(shelves(PrefixStoreConfig(), cache).roots) == ["disk"]
    finally:
        planted.unlink()
    assert list(shelves(PrefixStoreConfig(), cache).roots) == ["memory", "disk"]
    assert planted.stat().st_mode & 0o077 == 0


def test_no_room_to_write(make_trial: MakeTrial, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    frozen = frozen_of(make_trial(), cache)
    assert frozen.entry("train", 2, FP32, CPU) is None
    assert not shelved(cache)
    inputs, _ = batch_of(frozen.feed(2, FP32, CPU), "train", np.array([3, 1]))
    assert inputs["states"][0].shape[0] == 2
