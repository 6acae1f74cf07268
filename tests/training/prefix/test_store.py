"""What the store keeps of a model and its data, and what a feed makes of it."""

from __future__ import annotations

import copy
import gc
import json
import os
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.conftest import MakeTrial
from tests.training.prefix.conftest import CPU, FP32, computed, frozen_of, shelved
from tests.training.trials import batch_of
from training.config import PrefixStoreConfig
from training.prefix import Frozen, feed
from training.prefix import entries as files
from training.team import Team
from training.workspace import Workspace, load


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
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if precision == "highest" else "highest")
        assert open_and_count(frozen) == 7
    finally:
        torch.set_float32_matmul_precision(precision)
    # What the head is called does not matter, how a block computes does.
    frozen.blocks.model.config.id2label = {0: "a", 1: "b"}
    assert open_and_count(frozen) == 7
    frozen.blocks.model.config.layer_norm_eps = 1e-3
    assert open_and_count(frozen) == 8


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


def test_what_is_stored_is_read_without_copies(make_trial: MakeTrial, cache: Path) -> None:
    """It is mapped: pages of the file itself, which all processes of the machine share."""
    frozen = frozen_of(make_trial(), cache)
    entry = frozen.entry("train", 2, FP32, CPU)
    assert entry is not None
    assert torch.isfinite(entry.states[0].sum())
    pages = mapped(entry.path)
    assert pages["Size"] >= entry.states[0].nbytes // 1024
    assert pages["Rss"] >= entry.states[0].nbytes // 1024
    assert pages["Anonymous"] == 0
    entry.close()
    assert not mapped(entry.path)


def test_a_feed_gives_the_same_stored_or_recomputed(make_trial: MakeTrial, cache: Path) -> None:
    rows = np.array([5, 40, 2, 17, 11])
    kept = frozen_of(make_trial(), cache).feed(2, FP32, CPU)
    plain = frozen_of(make_trial(), cache, mode="recompute").feed(2, FP32, CPU)
    for name in ("train", "validation"):
        for chosen in (rows % 30, rows[:1] % 30, np.array([4, 4, 9])):
            stored, labels = batch_of(kept, name, chosen)
            again, same = batch_of(plain, name, chosen)
            assert kept.stored(name)
            assert not plain.stored(name)
            assert torch.equal(labels, same)
            assert torch.equal(stored["states"][0], again["states"][0])
            assert torch.equal(stored["input_ids"], again["input_ids"])
            assert not stored["states"][0][stored["attention_mask"] == 0].any()
    kept.close()


def mapped(path: Path) -> Counter[str]:
    """KiB that this process has mapped of files under `path`, by the kernel's names."""
    found: Counter[str] = Counter()
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.isidentifier() and value.endswith(" kB"):
            if inside:
                found[name] += int(value.split()[0])
        elif "-" in line.split()[0]:
            inside = str(path) in line
    return found


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
    batch_of(opened, "train", np.array([0]))
    (held,) = files.held(shelved(cache)[0].parent)
    assert held.in_use
    opened.close()
    (held,) = files.held(shelved(cache)[0].parent)
    assert not held.in_use
