"""Dropout: its stream derives from seed, step and rank, and its distribution does not depend on workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import Crew, MakeTrial
from tests.training.trials import run
from training.config import TrialConfig
from training.rng import derive
from training.team import Team
from training.workspace import Workspace


def losses_there(team: Team, configs: list[TrialConfig], directory: Path) -> list[float]:
    """The losses of all steps of some trials, one after the other."""
    workspace = Workspace(team)
    return [
        loss
        for number, config in enumerate(configs)
        for _, loss in run(config, workspace, directory / str(number))[1].losses
    ]


@pytest.mark.slow
def test_its_distribution_does_not_depend_on_the_number_of_workers(
    make_trial: MakeTrial, team: Team, tmp_path: Path, pair: Crew
) -> None:
    """What it does to the loss of a batch, at weights that stand still: 120 steps of 4 seeds."""
    from scipy.stats import ks_2samp

    def trials(dropout: float, micro: int) -> list[TrialConfig]:
        settings = {"epochs": 20.0, "learning_rate": 1e-12, "log_every": 1, "micro_batch_size": micro}
        return [make_trial(seed=seed, dropout=dropout, **settings) for seed in range(4)]

    without = np.array(losses_there(team, trials(0.0, 8), tmp_path / "without"))
    alone = np.array(losses_there(team, trials(0.3, 8), tmp_path / "alone")) - without
    parts = np.array(losses_there(team, trials(0.3, 2), tmp_path / "parts")) - without
    both = np.array(pair.run(losses_there, trials(0.3, 8), tmp_path / "pair")[0]) - without
    assert len(alone) == 480
    assert np.abs(alone).max() > 0.05
    for other in (parts, both):
        assert not np.array_equal(other, alone)
        print(f"std {other.std():.4f} against {alone.std():.4f}, p {ks_2samp(other, alone).pvalue:.3f}")
        assert ks_2samp(other, alone).pvalue > 1e-3
        assert other.std() == pytest.approx(alone.std(), rel=0.2)
        assert abs(other.mean() - alone.mean()) < 5 * alone.std() * np.sqrt(2 / 480)
    # Workers that drew alike would drop the same places in all examples: the noise of a mean would grow.
    assert abs(np.corrcoef(both, alone)[0, 1]) < 0.5


def seeds_there(team: Team, config: TrialConfig, directory: Path) -> list[int]:
    seeds: list[int] = []
    set_seed = Team.seed

    def noted(team: Team, seed: int) -> None:
        seeds.append(seed)
        set_seed(team, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Team, "seed", noted)
        run(config, Workspace(team), directory)
    return seeds


def test_every_worker_has_a_stream_of_its_own(make_trial: MakeTrial, tmp_path: Path, pair: Crew) -> None:
    found = pair.run(seeds_there, make_trial(dropout=0.3, micro_batch_size=2), tmp_path)
    for rank, seeds in enumerate(found):
        micros = [(step, index) for step in range(6) for index in range(2 if step < 5 else 1)]
        expected = [derive(5, "dropout", step, index, rank) for step, index in micros]
        assert [seed for seed in seeds if seed in expected] == expected
    drawn = [{seed for seed in seeds if seed != derive(5, "head")} for seeds in found]
    assert not drawn[0] & drawn[1]
