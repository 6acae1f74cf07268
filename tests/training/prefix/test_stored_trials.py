"""A trial is the same to the last bit, whether the states of its frozen blocks are stored or recomputed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from tests.training.conftest import VOCABULARY, Crew, MakeTrial, assert_same
from tests.training.test_equivalence import SCHEDULES
from tests.training.trials import batch_of
from tests.training.trials import run as run_trial
from training.config import ModelConfig, PrefixStoreConfig, TrialConfig, ZeroConfig
from training.prefix import Feed, clear
from training.team import Team
from training.workspace import Workspace, load

SPECIAL = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 10, "n_layer": 3, "n_head": 2, "n_positions": 32, "initializer_range": 0.3},
    "qwen2": {
        "hidden_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 17,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    },
    "t5": {
        "d_model": 10,
        "d_kv": 5,
        "d_ff": 17,
        "num_heads": 2,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "initializer_factor": 2.0,
    },
    "bart": {
        "d_model": 10,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 17,
        "decoder_ffn_dim": 17,
        "max_position_embeddings": 32,
        "init_std": 0.3,
        "forced_eos_token_id": None,
    },
}


@pytest.fixture(scope="module")
def models(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pretrained models of several kinds, with the tokenizer of the tiny BERT."""
    made = {"bert": tiny_bert}
    for kind, sizes in SIZES.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            config = AutoConfig.for_model(kind, vocab_size=len(VOCABULARY), **SPECIAL, **sizes)
            AutoModel.from_config(config).save_pretrained(made[kind])
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            if (tiny_bert / name).exists():
                shutil.copy(tiny_bert / name, made[kind] / name)
    return made


@dataclass(frozen=True)
class Outcome:
    """All that a trial came to."""

    losses: list[tuple[int, float]]
    scores: list[tuple[int, dict[str, float]]]
    weights: dict[str, Tensor]
    stored: frozenset[tuple[int, str]]
    """Boundaries and splits whose states came from the store."""


def run(
    team: Team, configs: Sequence[TrialConfig], cache: Path, store: PrefixStoreConfig, directory: Path
) -> list[Outcome]:
    """Trials one after another on a gang, which is warm for all but the first."""
    workspace = Workspace(team, cache, store)
    return [_run(config, workspace, directory / str(index)) for index, config in enumerate(configs)]


def _run(config: TrialConfig, workspace: Workspace, directory: Path) -> Outcome:
    found: set[tuple[int, str]] = set()
    real = Feed.open

    def opened(feed: Feed, *names: str) -> None:
        real(feed, *names)
        found.update((feed.boundary, name) for name in names if feed.boundary >= 0 and feed.stored(name))

    Feed.open = opened  # type: ignore[method-assign]
    try:
        state, told = run_trial(config, workspace, directory)
    finally:
        Feed.open = real  # type: ignore[method-assign]
    return Outcome(
        losses=told.losses,
        scores=told.scores,
        weights=dict(state.weights),
        stored=frozenset(found),
    )


STORE = PrefixStoreConfig(memory=0.1, disk=0)
RECOMPUTE = PrefixStoreConfig(mode="recompute")


def compare(
    configs: Sequence[TrialConfig],
    team: Team,
    pair: Crew | None,
    directory: Path,
    store: PrefixStoreConfig = STORE,
) -> list[Outcome]:
    """Trials stored, which are returned, and recomputed: by one worker or by a pair of them."""
    cache = directory / "cache"
    sides: list[list[Outcome]] = []
    for name, kept in (("stored", store), ("recomputed", RECOMPUTE)):
        arguments = (configs, cache, kept, directory / name)
        sides.append(pair.run(run, *arguments)[0] if pair else run(team, *arguments))
    clear(cache)
    for config, stored, recomputed in zip(configs, *sides, strict=True):
        case = f"{config.training.unfreezing.schedule} {config.training.zero} {config.training.precision}"
        assert stored.losses, case
        assert stored.losses == recomputed.losses, case
        assert stored.scores == recomputed.scores, case
        assert_same(stored.weights, recomputed.weights)
        assert not recomputed.stored, case
    return sides[0]


def trial(
    make_trial: MakeTrial, model: Path, schedule: str, stage: int, precision: str, **others: Any
) -> TrialConfig:
    config = make_trial(
        unfreezing=SCHEDULES[schedule],
        zero=ZeroConfig(stage=stage),  # type: ignore[arg-type]
        precision=precision,
        log_every=1,
        dropout=0.1,
        **others,
    )
    return replace(config, model=ModelConfig(name=str(model)))


# Every stage, number of workers, precision and kind of model, and most schedules; few of their combinations.
CASES = [
    ("bert", "head", 2, 2, "fp32"),
    ("bert", "gradual", 3, 1, "bf16"),
    ("bert", "chain-thaw", 2, 1, "fp32"),
    ("gpt2", "top", 1, 2, "bf16"),
    ("qwen2", "gradual", 3, 2, "fp32"),
    ("t5", "top", 0, 1, "fp32"),
    ("t5", "head", 3, 2, "bf16"),
    ("bart", "gradual", 1, 1, "fp32"),
    ("qwen2", "bottom-up", 1, 1, "bf16"),
]
WITHOUT_PREFIX = {"full", "lisa"}
"""Schedules that never freeze the lowest units."""


@pytest.mark.parametrize(("kind", "schedule", "stage", "workers", "precision"), CASES)
def test_stored_or_recomputed(
    kind: str,
    schedule: str,
    stage: int,
    workers: int,
    precision: str,
    models: dict[str, Path],
    make_trial: MakeTrial,
    team: Team,
    pair: Crew,
    tmp_path: Path,
) -> None:
    config = trial(make_trial, models[kind], schedule, stage, precision)
    (stored,) = compare([config], team, pair if workers == 2 else None, tmp_path)
    # For training and for evaluation; at every boundary.
    assert len(stored.stored) >= (4 if schedule == "gradual" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_stored_or_recomputed_everywhere(
    kind: str,
    schedule: str,
    models: dict[str, Path],
    make_trial: MakeTrial,
    team: Team,
    pair: Crew,
    tmp_path: Path,
) -> None:
    """All stages that differ (alone, 1 and 2 are 0), numbers of workers, and precisions."""
    for workers, stages in ((1, (0, 3)), (2, range(4))):
        configs = [
            trial(make_trial, models[kind], schedule, stage, precision, epochs=2.0, batch_size=16)
            for stage, precision in product(stages, ("fp32", "bf16"))
        ]
        for stored in compare(configs, team, pair if workers == 2 else None, tmp_path / str(workers)):
            assert bool(stored.stored) == (schedule not in WITHOUT_PREFIX)


def test_a_budget_for_one_boundary(
    models: dict[str, Path], make_trial: MakeTrial, team: Team, tmp_path: Path
) -> None:
    """What does not fit is recomputed, what is no longer read gives way, and the bits are the same."""
    config = trial(make_trial, models["bert"], "gradual", 0, "fp32")
    tokens = int(Workspace(team, tmp_path / "cache").open(config).data.train.offsets[-1])
    tight = PrefixStoreConfig(memory=tokens * 10 * 4 * 1.3 / 1e9, disk=0)
    (ample,) = compare([config], team, None, tmp_path / "ample")
    (stored,) = compare([config], team, None, tmp_path / "tight", tight)
    assert 0 < len(stored.stored) < len(ample.stored)


def test_a_resumed_trial(models: dict[str, Path], make_trial: MakeTrial, team: Team, tmp_path: Path) -> None:
    """Begun on stored states, gone on with on recomputed ones."""
    config = trial(make_trial, models["t5"], "gradual", 2, "fp32", epochs=2.0, evaluations_per_epoch=2)
    (whole,) = run(team, [config], tmp_path / "cache", STORE, tmp_path / "whole")
    workspace = Workspace(team, tmp_path / "cache", STORE)
    run_trial(config, workspace, tmp_path / "parts" / "0", stop_at=2)
    (rest,) = run(team, [config], tmp_path / "cache", RECOMPUTE, tmp_path / "parts")
    clear(tmp_path / "cache")
    assert_same(rest.weights, whole.weights)
    assert rest.scores[-1] == whole.scores[-1]


@pytest.mark.parametrize("kind", ["bert", *SIZES])
def test_states_do_not_depend_on_whose_engine_is_there(
    kind: str,
    models: dict[str, Path],
    make_trial: MakeTrial,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ZeRO-3 puts its own matrix product in the place of torch's, for all there is while it has an engine."""
    config = replace(make_trial(), model=ModelConfig(name=str(models[kind])))
    feed = load(config, tmp_path, RECOMPUTE).frozen.feed(1, torch.bfloat16, torch.device("cpu"))
    rows = np.arange(8)
    expected = batch_of(feed, "train", rows)[0]["states"]
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    for ours, theirs in zip(batch_of(feed, "train", rows)[0]["states"], expected, strict=True):
        assert torch.equal(ours, theirs)
