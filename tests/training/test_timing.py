"""The probe: the real training loop on a tiny model, timed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import MakeTrial
from training import loop
from training.batches import epoch_batches
from training.config import PrefixStoreConfig, TrialConfig
from training.rng import derive
from training.team import Team
from training.timing import STEPS, Shape, _measure, probe, typical
from training.workspace import Workspace


def test_each_shape_is_measured(make_trial: MakeTrial, team: Team) -> None:
    shapes = [Shape(depth=depth, batch_size=8) for depth in (0, 2, 4)]
    start_s, costs = _measure(make_trial(), shapes, PrefixStoreConfig(), 1, False, time.time())
    assert 0 < start_s < 60
    assert [cost.shape for cost in costs] == shapes
    for cost in costs:
        assert cost.step_s > 0
        assert cost.store_s >= 0
        assert cost.trained == 44
        assert cost.begin_s >= 0
        assert cost.evaluation_s > 0
        assert cost.evaluated == 30
        assert cost.end_s > 0
    sizes = [cost.checkpoint_bytes for cost in costs]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]  # a deeper phase has more to keep


@pytest.mark.slow
def test_processes_measure_side_by_side(make_trial: MakeTrial) -> None:
    shapes = [Shape(depth=1, batch_size=8)]
    found = probe(make_trial(), shapes, store=PrefixStoreConfig(), processes=2, cpus=1, gpu=False)
    assert found.processes == 2
    assert found.start_s > 0
    (cost,) = found.costs
    assert cost.step_s > 0


@pytest.mark.parametrize(("batch_size", "examples"), [(8, 1000), (16, 1000), (32, 1000), (32, 100)])
def test_the_steps_that_are_timed_are_as_long_as_all_are(batch_size: int, examples: int) -> None:
    """Not as chance has it: batches of one length differ by a factor of ten here."""
    lengths = np.random.default_rng(3).integers(3, 64, examples)

    def apart(seed: int) -> float:
        made = [epoch_batches(lengths, batch_size, derive(seed, "batches"), epoch) for epoch in range(2)]
        first, second = ([len(batch) * lengths[batch].max() for batch in epoch] for epoch in made)
        return float(abs(np.mean((first + second)[1:STEPS]) / np.mean(first) - 1))

    assert apart(typical(lengths, batch_size)) < 0.03
    assert max(map(apart, range(20))) > 0.15


def test_a_probe_takes_a_typical_trial(
    make_trial: MakeTrial, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    train = loop.train

    def seen(config: TrialConfig, **settings: Any) -> Any:
        seeds.append(config.seed)
        return train(config, **settings)

    monkeypatch.setattr(loop, "train", seen)
    config = make_trial(seed=10**6)
    _measure(config, [Shape(depth=0, batch_size=8)], PrefixStoreConfig(), 1, False, time.time())
    lengths = Workspace(team).open(config).data.train.lengths
    assert set(seeds) == {typical(lengths, 8)}
