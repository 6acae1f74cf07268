"""The store as its users meet it: real processes that race, die and come back."""

from __future__ import annotations

import copy
import fcntl
import gc
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.conftest import MakeTrial
from training.config import PrefixStoreConfig, TrialConfig
from training.prefix import Frozen, clear, feed, shelves
from training.prefix import entries as files
from training.prefix.compute import Probe, Recipe
from training.prefix.store import roots_of
from training.team import Team
from training.workspace import Workspace, load

CPU = torch.device("cpu")
FP32 = torch.float32


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A cache of the test's own, with its part of the memory."""
    yield tmp_path / "cache"
    clear(tmp_path / "cache")
    assert not any(root.exists() and any(root.iterdir()) for root in roots_of(tmp_path / "cache").values())


def frozen_of(config: TrialConfig, cache: Path, **store: Any) -> Frozen:
    return load(config, cache, PrefixStoreConfig(**store)).frozen


def computed(frozen: Frozen, boundary: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    """All states of the training examples, recomputed."""
    recipe = frozen.recipe("train", boundary, dtype, CPU)
    offsets = frozen.data.train.offsets
    whole = torch.zeros(int(offsets[-1]), 10, dtype=dtype)
    for wanted, (states,) in recipe.pieces(np.arange(len(frozen.data.train))):
        at = 0
        for index in wanted:
            rows = int(offsets[index + 1] - offsets[index])
            whole[offsets[index] : offsets[index + 1]] = states[at : at + rows]
            at += rows
    return whole


def shelved(cache: Path) -> list[Path]:
    """The entries in memory and on disk."""
    roots = [root for root in roots_of(cache).values() if root.is_dir()]
    return [p for root in roots for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]


def test_stored_states_are_those_that_are_computed(make_trial: MakeTrial, cache: Path) -> None:
    frozen = frozen_of(make_trial(), cache)
    for boundary, dtype in ((0, FP32), (2, FP32), (3, torch.bfloat16)):
        entry = frozen.entry("train", boundary, dtype, CPU)
        assert entry is not None
        assert torch.equal(entry.states[0], computed(frozen, boundary, dtype))
        entry.close()
    assert len(shelved(cache)) == 3


def test_a_boundary_builds_on_the_one_below(
    make_trial: MakeTrial, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = frozen_of(make_trial(), cache)
    expected = computed(frozen, 3)
    low = frozen.entry("train", 1, FP32, CPU)
    assert low is not None
    low.close()
    built: list[tuple[int | None, int]] = []
    segment = frozen.blocks.segment
    monkeypatch.setattr(frozen.blocks, "segment", lambda a, b, t: built.append((a, b)) or segment(a, b, t))
    frozen.segments.clear()
    high = frozen.entry("train", 3, FP32, CPU)
    assert high is not None
    assert built == [(None, 3), (1, 3)]  # the first for the probe
    assert torch.equal(high.states[0], expected)
    high.close()


def test_what_is_foreseen_is_made_on_the_way(make_trial: MakeTrial, cache: Path) -> None:
    foreseeing = load(make_trial(), cache, PrefixStoreConfig(), (1, 2, 3)).frozen
    expected = {boundary: computed(foreseeing, boundary) for boundary in (1, 2, 3)}
    foreseeing.segments.clear()
    foreseeing.probes.clear()
    top = foreseeing.entry("train", 3, FP32, CPU)
    assert top is not None
    top.close()
    assert len(shelved(cache)) == 3
    alone = frozen_of(make_trial(), cache)
    for boundary, states in expected.items():
        found = alone.entry("train", boundary, FP32, CPU)
        assert found is not None
        assert torch.equal(found.states[0], states)
        found.close()
    assert not alone.segments  # nothing was computed


def test_what_is_foreseen_takes_nobodys_place(make_trial: MakeTrial, cache: Path) -> None:
    size = 2.5 * computed(frozen_of(make_trial(), cache), 2).nbytes / 1e9
    store = PrefixStoreConfig(memory=size, disk=size)
    top = load(make_trial(), cache, store, (1, 2, 3)).frozen.entry("train", 3, FP32, CPU)
    if top is not None:
        top.close()
    assert len(shelved(cache)) == (top is not None)


def test_what_an_entry_depends_on(make_trial: MakeTrial, cache: Path) -> None:
    frozen = frozen_of(make_trial(), cache)

    def open_and_count(frozen: Frozen, boundary: int = 2, dtype: torch.dtype = FP32) -> int:
        entry = frozen.entry("train", boundary, dtype, CPU)
        assert entry is not None
        entry.close()
        return len(shelved(cache))

    assert open_and_count(frozen) == 1
    assert open_and_count(frozen) == 1
    assert open_and_count(frozen, dtype=torch.bfloat16) == 2
    assert open_and_count(frozen, boundary=1) == 3
    assert open_and_count(replace(frozen, fingerprint="other weights")) == 4
    assert open_and_count(replace(frozen, data=replace(frozen.data, fingerprint="other examples"))) == 5
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert open_and_count(frozen) == 6
    finally:
        torch.set_num_threads(threads)
    # What the head is called does not matter, how a block computes does.
    frozen.blocks.model.config.id2label = {0: "a", 1: "b"}
    assert open_and_count(frozen) == 6
    frozen.blocks.model.config.layer_norm_eps = 1e-3
    assert open_and_count(frozen) == 7


def test_a_damaged_entry_is_not_used(make_trial: MakeTrial, cache: Path) -> None:
    frozen = frozen_of(make_trial(), cache)
    expected = computed(frozen, 2)

    def damage(how: str, path: Path) -> None:
        data, manifest = path / "0.bin", path / "manifest.json"
        if how == "truncated":
            os.truncate(data, data.stat().st_size - 4)
        elif how == "altered":
            with data.open("r+b") as file:
                file.seek(100)
                file.write(b"\x01\x02\x03")
        elif how == "gone":
            data.unlink()
        elif how == "no manifest":
            manifest.unlink()
        elif how == "a manifest of nothing":
            damage("altered", path)
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": {}}))
        else:
            manifest.write_text(manifest.read_text()[:-5])

    hows = ("truncated", "altered", "gone", "no manifest", "half a manifest", "a manifest of nothing")
    for how in hows:
        entry = frozen.entry("train", 2, FP32, CPU)
        assert entry is not None
        entry.close()
        (path,) = shelved(cache)
        damage(how, path)
        files._verified.clear()  # as a new process has it
        again = frozen.entry("train", 2, FP32, CPU)
        assert again is not None, how
        assert torch.equal(again.states[0], expected), how
        again.close()
        assert len(shelved(cache)) == 1


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
    inputs, _ = frozen.feed(2, FP32, CPU).batch("train", np.array([3, 1]))
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
    inputs, _ = frozen.feed(2, FP32, CPU).batch("train", np.array([3, 1]))
    assert inputs["states"][0].shape[0] == 2


def test_a_feed_gives_the_same_stored_or_recomputed(make_trial: MakeTrial, cache: Path) -> None:
    rows = np.array([5, 40, 2, 17, 11])
    kept = frozen_of(make_trial(), cache).feed(2, FP32, CPU)
    plain = frozen_of(make_trial(), cache, mode="recompute").feed(2, FP32, CPU)
    for name in ("train", "validation"):
        for chosen in (rows % 30, rows[:1] % 30, np.array([4, 4, 9])):
            stored, labels = kept.batch(name, chosen)
            again, same = plain.batch(name, chosen)
            assert kept.stored(name)
            assert not plain.stored(name)
            assert torch.equal(labels, same)
            assert torch.equal(stored["states"][0], again["states"][0])
            assert torch.equal(stored["input_ids"], again["input_ids"])
            assert not stored["states"][0][stored["attention_mask"] == 0].any()
    kept.close()


def test_what_computes_is_there_once_for_all_splits(
    make_trial: MakeTrial, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it is a copy, in the memory that the engine needs."""
    frozen = frozen_of(make_trial(), cache, mode="recompute")
    there: list[weakref.ref[torch.nn.Module]] = []

    def copied(module: torch.nn.Module, _: torch.device) -> torch.nn.Module:
        made = copy.deepcopy(module)
        there.append(weakref.ref(made))
        return made

    monkeypatch.setattr(feed, "on_device", copied)
    opened = frozen.feed(2, FP32, CPU)
    opened.open("train", "validation")
    gc.collect()
    assert len([module for module in there if module() is not None]) == 1
    opened.close()
    gc.collect()
    assert not [module for module in there if module() is not None]


def test_the_memory_of_a_phase_is_given_back(make_trial: MakeTrial, cache: Path, team: Team) -> None:
    setting = Workspace(team, cache).open(make_trial())
    opened = setting.frozen.feed(2, FP32, CPU)
    opened.batch("train", np.array([0]))
    (held,) = files.held(shelved(cache)[0].parent)
    assert held.in_use
    opened.close()
    (held,) = files.held(shelved(cache)[0].parent)
    assert not held.in_use
