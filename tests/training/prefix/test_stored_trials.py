"""A trial is the same to the last bit, whether the states of its frozen blocks are stored or recomputed."""

from __future__ import annotations

import shutil
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
from training.prefix import clear
from training.prefix.store import Shelves
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
    stored: int
    """How often states came from the store."""


def run(team: Team, config: TrialConfig, cache: Path, store: PrefixStoreConfig, directory: Path) -> Outcome:
    found: list[object] = []
    find = Shelves.obtain

    def counted(*args: Any, **kwargs: Any) -> Any:
        entry = find(*args, **kwargs)
        found.append(entry)
        return entry

    Shelves.obtain = counted  # type: ignore[method-assign]
    try:
        state, told = run_trial(config, Workspace(team, cache, store), directory)
    finally:
        Shelves.obtain = find  # type: ignore[method-assign]
    return Outcome(
        losses=told.losses,
        scores=told.scores,
        weights=dict(state.weights),
        stored=sum(entry is not None for entry in found),
    )


STORE = PrefixStoreConfig(memory=0.1, disk=0)
RECOMPUTE = PrefixStoreConfig(mode="recompute")


def compare(
    config: TrialConfig, team: Team, pair: Crew | None, directory: Path, store: PrefixStoreConfig = STORE
) -> tuple[Outcome, Outcome]:
    """The trial stored and recomputed, by one worker or by a pair of them."""
    cache = directory / "cache"
    outcomes: list[Outcome] = []
    for name, kept in (("stored", store), ("recomputed", RECOMPUTE)):
        arguments = (config, cache, kept, directory / name)
        outcomes.append(pair.run(run, *arguments)[0] if pair else run(team, *arguments))
    clear(cache)
    stored, recomputed = outcomes
    assert stored.losses
    assert stored.losses == recomputed.losses
    assert stored.scores == recomputed.scores
    assert_same(stored.weights, recomputed.weights)
    assert recomputed.stored == 0
    return stored, recomputed


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
WITH_PREFIX = {"head", "top", "gradual", "bottom-up"}


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
    stored, _ = compare(config, team, pair if workers == 2 else None, tmp_path)
    if schedule in WITH_PREFIX:  # for training in every phase, and for validation at its end
        assert stored.stored >= (4 if schedule == "gradual" else 2)


NAMED = [schedule for schedule in SCHEDULES if schedule not in ("phases", "refreezing")]
ALL = product(("bert", "gpt2", "t5"), NAMED, range(4), (1, 2), ("fp32", "bf16"))
EVERYTHING = [case for index, case in enumerate(ALL) if index % 11 == 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_stored_or_recomputed_everywhere(
    kind: str, models: dict[str, Path], make_trial: MakeTrial, team: Team, pair: Crew, tmp_path: Path
) -> None:
    cases = [case for case in EVERYTHING if case[0] == kind]
    for index, (_, schedule, stage, workers, precision) in enumerate(cases):
        config = trial(make_trial, models[kind], schedule, stage, precision, epochs=0.5)
        stored, _ = compare(config, team, pair if workers == 2 else None, tmp_path / str(index))
        assert stored.stored or schedule not in WITH_PREFIX  # or both sides would have recomputed


def test_a_budget_for_one_boundary(
    models: dict[str, Path], make_trial: MakeTrial, team: Team, tmp_path: Path
) -> None:
    """What does not fit is recomputed, what is no longer read gives way, and the bits are the same."""
    config = trial(make_trial, models["bert"], "gradual", 0, "fp32")
    tokens = int(Workspace(team, tmp_path / "cache").open(config).data.train.offsets[-1])
    tight = PrefixStoreConfig(memory=tokens * 10 * 4 * 1.3 / 1e9, disk=0)
    stored, _ = compare(config, team, None, tmp_path, tight)
    assert 0 < stored.stored < 4


def test_a_resumed_trial(models: dict[str, Path], make_trial: MakeTrial, team: Team, tmp_path: Path) -> None:
    """Begun on stored states, gone on with on recomputed ones."""
    config = trial(make_trial, models["t5"], "gradual", 2, "fp32", epochs=2.0, evaluations_per_epoch=2)
    whole = run(team, config, tmp_path / "cache", STORE, tmp_path / "whole")
    workspace = Workspace(team, tmp_path / "cache", STORE)
    run_trial(config, workspace, tmp_path / "parts", stop_at=2)
    rest = run(team, config, tmp_path / "cache", RECOMPUTE, tmp_path / "parts")
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
