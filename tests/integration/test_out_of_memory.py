"""A gang of two of which one worker runs out of memory, for real: the operating system refuses it more."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from training.config import DataConfig, ModelConfig, TaskConfig, TrainingConfig, TrialConfig, UnfreezingConfig
from training.gang import Ended, Failed, Gang, GangConfig, Order
from training.reporter import Evaluation, Verdict

WORDS = [f"word{number}" for number in range(40)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """Two blocks of 256 hidden units, and sentences of 60 tokens: about 2 MB an example."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 1024}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    config = BertConfig(vocab_size=len(special) + len(WORDS), max_position_embeddings=64, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    draw = random.Random(0)
    for split, count in (("train", 256), ("validation", 16)):
        rows = [(" ".join(draw.choices(WORDS, k=58)), draw.choice("ab")) for _ in range(count)]
        (path / f"{split}.csv").write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows))
    return TrialConfig(
        model=ModelConfig(name=str(path)),
        task=TaskConfig(max_length=64),
        data=DataConfig(train=str(path / "train.csv"), validation=str(path / "validation.csv")),
        training=TrainingConfig(epochs=1.0, batch_size=8, unfreezing=UnfreezingConfig(schedule="head")),
        seed=0,
    )


@pytest.fixture
def gang(idle_nodes: Sequence[Mapping[str, float]], tmp_path: Path) -> Iterator[Gang]:
    made = Gang(GangConfig(workers=2, cpus_per_worker=1, gpus_per_worker=0, storage=str(tmp_path / "ray")))
    yield made
    made.close()


def to_the_end(gang: Gang, order: Order) -> tuple[list[Evaluation], Ended | Failed]:
    gang.begin(order)
    evaluations: list[Evaluation] = []
    while isinstance(news := gang.advance(), Evaluation):
        evaluations.append(news)
    return evaluations, news


def allow_no_more_than(pid: int, more: int) -> None:
    """Let a process have `more` bytes of address space beside what it has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_a_gang_of_two_halves_its_micro_batch_and_the_trial_goes_on(
    wide: TrialConfig, gang: Gang, tmp_path: Path
) -> None:
    first = Order(trial=0, config=wide, directory=str(tmp_path / "0"))
    assert to_the_end(gang, first)[1] == Ended(verdict=Verdict.CONTINUE)
    before = gang.worker_pids
    allow_no_more_than(before[1], 100_000_000)  # rank 0 would wait for it in a collective
    training = TrainingConfig(epochs=2.0, batch_size=256, micro_batch_size=128, dropout=0.0)
    config = TrialConfig(model=wide.model, task=wide.task, data=wide.data, training=training, seed=1)
    evaluations, end = to_the_end(gang, Order(trial=1, config=config, directory=str(tmp_path / "1")))
    assert end == Ended(verdict=Verdict.CONTINUE)
    assert [item.step for item in evaluations] == [1, 2]
    assert set(gang.worker_pids).isdisjoint(before)
    # What was found out is told to every later group.
    assert [known.micro_batch for known in gang._limits.values()] == [64]
    again = Order(trial=2, config=config, directory=str(tmp_path / "2"))
    once_more, _ = to_the_end(gang, again)
    assert [item.metrics for item in once_more] == [item.metrics for item in evaluations]
