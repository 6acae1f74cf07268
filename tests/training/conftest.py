"""A tiny pretrained model, tiny data, a reporter that records, and workers that stay warm."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import random
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from training.config import DataConfig, ModelConfig, TaskConfig, TrainingConfig, TrialConfig
from training.reporter import Course, Evaluation, Progress, Verdict
from training.team import Team
from training.workspace import Workspace

BLOCKS = 3
GOOD = ("lovely", "moving", "splendid", "warm", "witty")
BAD = ("awful", "boring", "clumsy", "dull", "stale")
FILLER = (
    "a",
    "and",
    "film",
    "it",
    "is",
    "plot",
    "story",
    "the",
    "was",
    "very",
    "un",
    "##ly",
    "##s",
    ".",
    ",",
)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER)


def tiny_config(**settings: Any) -> BertConfig:
    """Odd sizes, so that partitions cut through tensors; weights large enough to be felt."""
    return BertConfig(
        **{
            "vocab_size": len(VOCABULARY),
            "hidden_size": 10,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 2,
            "intermediate_size": 17,
            "max_position_embeddings": 32,
            "initializer_range": 0.3,
            **settings,
        }
    )


def tiny_model(**settings: Any) -> BertForSequenceClassification:
    """The same random model in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return BertForSequenceClassification(tiny_config(**settings))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model without a task head, with its WordPiece tokenizer."""
    path = tmp_path_factory.mktemp("tiny-bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        BertModel(tiny_config(), add_pooling_layer=False).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    return path


def write_sentences(path: Path, count: int, seed: int) -> None:
    """Sentences whose label is whether their one telling word is good or bad."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            words = draw.choices(FILLER[:10], k=draw.randrange(1, 14))
            label = draw.choice(("negative", "positive"))
            words.insert(draw.randrange(len(words) + 1), draw.choice(GOOD if label == "positive" else BAD))
            file.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """44 examples to train on, so that the last batch of 8 is half empty; 30 to validate on."""
    path = tmp_path_factory.mktemp("tiny-data")
    write_sentences(path / "train.jsonl", 44, seed=1)
    write_sentences(path / "validation.jsonl", 30, seed=2)
    return DataConfig(train=str(path / "train.jsonl"), validation=str(path / "validation.jsonl"))


MakeTrial = Callable[..., TrialConfig]


@pytest.fixture(scope="session")
def make_trial(tiny_bert: Path, tiny_data: DataConfig) -> MakeTrial:
    """`make_trial(seed=..., **training)`: a trial on the tiny model and data, without dropout."""

    def make(*, seed: int = 5, **training: Any) -> TrialConfig:
        settings = {"epochs": 1.0, "learning_rate": 1e-2, "batch_size": 8, "dropout": 0.0, **training}
        return TrialConfig(
            model=ModelConfig(name=str(tiny_bert)),
            task=TaskConfig(max_length=24),
            data=tiny_data,
            training=TrainingConfig(**settings),
            seed=seed,
        )

    return make


def muster(rank: int = 0, size: int = 1, rendezvous: str | None = None) -> Team:
    """This process as a worker, set up as a gang does it."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    if rendezvous is not None:
        store = torch.distributed.FileStore(rendezvous, size)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    import training.engine
    import training.loop

    # DeepSpeed refuses fp16 on a CPU without instructions for it, where torch computes it all the same.
    training.engine.deepspeed.get_accelerator().is_fp16_supported = lambda: True
    freeze()
    return Team(torch.device("cpu"))


def freeze() -> None:
    """Spare the collections after each phase what lives now: they would cost more than the phase."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _frozen() -> None:
    """What lives when a test begins, such as all that earlier ones imported, outlives it."""
    freeze()


@pytest.fixture(scope="session")
def team() -> Iterator[Team]:
    """A worker on its own: this process."""
    yield muster()
    gc.unfreeze()


@pytest.fixture(scope="session")
def workspace(team: Team) -> Workspace:
    """A workspace that is warm for all tests. Tests that damage it make their own."""
    return Workspace(team)


class Killed(BaseException):
    """Stands for the death of the process."""


@dataclass
class Recorder:
    """Keeps what a trial tells.

    Args:
        stop_at: answer STOP to this evaluation, counted from 1.
        die_at: raise `Killed` at this evaluation, whose checkpoint is written by then.
        leave_at: answer LEAVE to the first progress at this step or later.
    """

    stop_at: int | None = None
    die_at: int | None = None
    leave_at: int | None = None
    courses: list[Course] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def started(self, course: Course) -> None:
        self.courses.append(course)

    def progressed(self, progress: Progress) -> Verdict | None:
        self.progress.append(progress)
        leaves = self.leave_at is not None and progress.step >= self.leave_at
        return Verdict.LEAVE if leaves else None

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        self.evaluations.append(evaluation)
        if len(self.evaluations) == self.die_at:
            raise Killed
        return Verdict.STOP if len(self.evaluations) == self.stop_at else Verdict.CONTINUE

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Step and training loss of every report."""
        return [(item.step, item.metrics["train/loss"]) for item in self.progress]

    @property
    def scores(self) -> list[tuple[int, dict[str, float]]]:
        """Step and metrics of every evaluation."""
        return [(item.step, dict(item.metrics)) for item in self.evaluations]


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same names, bit-identical tensors."""
    assert set(found) == set(expected)
    different = [name for name in found if not torch.equal(found[name], expected[name])]
    assert not different


def largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Over all elements of all tensors, which have the same names."""
    assert set(found) == set(expected)
    return max(float((found[name] - expected[name]).abs().max()) for name in found)


def plain(config: TrialConfig) -> TrialConfig:
    """The trial with dropout as the model has it."""
    return replace(config, training=replace(config.training, dropout=None))


def attach(prefix: nn.Module | None, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Inputs of the suffix above `prefix` for a batch of tokens, as it comes."""
    with torch.no_grad():
        return {**batch, **({"states": prefix(**batch)} if prefix is not None else {})}


class Crew:
    """Worker processes in one gloo process group, which run what they are handed.

    Spawned once and kept: importing torch and DeepSpeed costs more than what tests do there. A crew that was
    lost in a test is spawned anew for the next, or for another try of it.
    """

    def __init__(self, size: int, directory: Path) -> None:
        self._size, self._directory = size, directory
        self._spawned = 0
        self._connections: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self._spawn()

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._spawned += 1
        rendezvous = self._directory / f"rendezvous-{self._spawned}"
        for rank in range(self._size):
            ours, theirs = context.Pipe()
            arguments = (rank, self._size, str(rendezvous), theirs)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = 300.0) -> list[Any]:
        """`function(team, *args)` on every worker; what each returns, by rank.

        A worker that fails, or none that answers in time, fails the test and ends the crew.
        """
        if not self._processes or not all(process.is_alive() for process in self._processes):
            self.close()
            self._spawn()
        order = pickle.dumps((function, args))
        for connection in self._connections:
            connection.send_bytes(order)
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_s
        while len(answers) < len(self._connections):
            waiting = {c: rank for rank, c in enumerate(self._connections) if rank not in answers}
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                pytest.fail(f"ranks {sorted(waiting.values())} gave no answer within {timeout_s} s")
            for connection in (c for c in waiting if c in ready):
                try:
                    error, value = pickle.loads(connection.recv_bytes())
                except EOFError:
                    error, value = "died", None
                if error is not None:
                    self.close()
                    pytest.fail(f"rank {waiting[connection]}: {error}")
                answers[waiting[connection]] = value
        return [answers[rank] for rank in range(len(self._connections))]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(10)
        for connection in self._connections:
            connection.close()
        self._processes.clear()
        self._connections.clear()


def _work(rank: int, size: int, rendezvous: str, connection: Connection) -> None:
    warnings.simplefilter("ignore", FutureWarning)
    team = muster(rank, size, rendezvous)
    while True:
        try:
            function, args = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer: tuple[str | None, Any] = (None, function(team, *args))
        except BaseException:
            answer = (traceback.format_exc(), None)
        connection.send_bytes(pickle.dumps(answer))
        del answer
        freeze()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Two workers."""
    crew = Crew(2, tmp_path_factory.mktemp("pair"))
    yield crew
    crew.close()


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[Crew]:
    """A process that has not trained anything yet."""
    crew = Crew(1, tmp_path)
    yield crew
    crew.close()
