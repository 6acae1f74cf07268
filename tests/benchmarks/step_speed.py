"""How long an epoch takes with frozen blocks stored, recomputed, and under Hugging Face's Trainer.

`python -m tests.benchmarks.step_speed [--out FILE]` fine-tunes MiniLM-L6 on the bundled movie
sentences, on the GPU where there is one, else in one thread, and prints a table of ratios. Every side runs
the same epoch (examples, batch size, precision, optimizer, the model's own dropout, top blocks thawed), in
turns, Thaw in this process and Trainer, which pads each batch to its longest example, in another, with
torch and model as they come; the best of the repeats counts.
What is timed is from the end of the first step to the end of the last, scaled to the epoch, so no side
pays for start-up, evaluation or checkpoints; with `--clock cpu` it is the process's CPU time, which
other work on the machine disturbs less. What it takes to fill the store, in a scratch folder, is told
apart: it is paid once for all trials.
"""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.results import machine, tell
from tests.conftest import MODEL, SENTENCES
from training.blocks import Blocks
from training.config import (
    DataConfig,
    LimitConfig,
    ModelConfig,
    PrefixStoreConfig,
    TaskConfig,
    TrainingConfig,
    TrialConfig,
    UnfreezingConfig,
)
from training.engine import compute_dtype
from training.loop import train
from training.prefix import clear
from training.reporter import Course, Evaluation, Progress, Verdict
from training.team import Team
from training.workspace import Workspace

TARGETS = {0: 40.0, 1: 2.4, 2: 1.5, 6: 1.0}
"""Trainer's seconds over those with the store, by thawed blocks."""
BLOCKS = 6


def trial(examples: int, batch_size: int, precision: str, thawed: int) -> TrialConfig:
    """One epoch with the top `thawed` blocks and the head."""
    unfreezing = UnfreezingConfig(schedule="full")
    if thawed < BLOCKS:
        unfreezing = UnfreezingConfig(schedule="top" if thawed else "head", depth=max(thawed, 1))
    return TrialConfig(
        model=ModelConfig(name=MODEL),
        task=TaskConfig(max_length=64),
        data=DataConfig(
            train=str(SENTENCES / "train.jsonl"),
            validation=str(SENTENCES / "validation.jsonl"),
            limit=LimitConfig(train=examples, validation=32),
        ),
        training=TrainingConfig(
            epochs=1.0,
            batch_size=batch_size,
            precision=precision,  # type: ignore[arg-type]
            unfreezing=unfreezing,
        ),
        seed=1,
    )


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = "wall"


def _now() -> float:
    return CLOCKS[_clock]()


@dataclass
class Clock:
    """A reporter that times the steps after the first."""

    began: float = 0.0
    first: int = 0
    last: int = 0
    seconds: float = 0.0

    def started(self, course: Course) -> None:
        """Nothing."""

    def progressed(self, progress: Progress) -> None:
        """After the first step, and at the last."""
        now = _now()
        if not self.first:
            self.began, self.first = now, progress.step
        self.last, self.seconds = progress.step, now - self.began

    def evaluated(self, evaluation: Evaluation) -> Verdict:
        """Go on."""
        return Verdict.CONTINUE

    def epoch(self) -> float:
        """Seconds for as many steps as an epoch has."""
        return self.seconds * self.last / (self.last - self.first)


def thaw_epoch(workspace: Workspace, config: TrialConfig) -> float:
    """Seconds of an epoch under Thaw."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        train(config, workspace=workspace, reporter=clock, directory=Path(directory))
    return clock.epoch()


def trainer_epoch(config: TrialConfig, cache: Path, thawed: int, clock_name: str) -> float:
    """Seconds of an epoch under Trainer with dynamic padding, on the same examples.

    In a process of its own: in one that has a process group Trainer wraps the model for several workers.
    """
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from training.data import prepare
    from training.models import load_tokenizer, model_directory

    global _clock
    _clock = clock_name
    torch.set_num_threads(1)
    os.environ.pop("LOCAL_RANK", None)  # inherited from a worker, which this is not
    data = prepare(config.model, config.task, config.data, cache=cache)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        model_directory(config.model), num_labels=len(data.label_names), dtype=torch.float32
    )
    blocks = Blocks(copy.deepcopy(model))
    for name, parameter in model.named_parameters():
        unit = blocks.unit(name)
        above = isinstance(unit, int) and unit >= BLOCKS - thawed
        parameter.requires_grad_(unit == "head" or above or thawed == BLOCKS)
    split = data.train
    rows = [
        {"input_ids": split.ids[a:b].tolist(), "attention_mask": [1] * int(b - a), "labels": int(label)}
        for a, b, label in zip(split.offsets, split.offsets[1:], split.labels, strict=False)
    ]
    clock = Clock()

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available() and state.global_step in (1, state.max_steps):
                torch.cuda.synchronize()
            now = _now()
            if not clock.first:
                clock.began, clock.first = now, state.global_step
            clock.last, clock.seconds = state.global_step, now - clock.began

    # It prints how long it took, where JSON is to come.
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(sys.stderr):
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=directory,
                num_train_epochs=1,
                per_device_train_batch_size=config.training.batch_size,
                learning_rate=config.training.learning_rate,
                optim="adamw_torch_fused",
                bf16=config.training.precision == "bf16",
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=torch.cuda.is_available(),
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=1,
            ),
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(load_tokenizer(config.model)),
            callbacks=[Steps()],
        ).train()
    return clock.epoch()


@contextmanager
def scratch() -> Iterator[Path]:
    """A cache whose memory and disk are given back."""
    path = Path(tempfile.mkdtemp(prefix="thaw-step-speed-"))
    try:
        yield path
    finally:
        clear(path)
        shutil.rmtree(path, ignore_errors=True)


def fill(workspace: Workspace, config: TrialConfig, thawed: int) -> dict[str, float]:
    """Seconds to compute and store a boundary for the training examples, and its size."""
    setting = workspace.open(config)
    dtype = compute_dtype(config.training.precision)
    began = _now()
    entry = setting.frozen.entry("train", BLOCKS - thawed, dtype, workspace.team.device)
    seconds = _now() - began
    assert entry is not None, "there is no room for the store"
    size = sum(state.nbytes for state in entry.states)
    entry.close()
    return {"seconds": seconds, "megabytes": size / 1e6}


def measure(
    examples: int, batch_size: int, precision: str, depths: list[int], repeats: int
) -> dict[str, Any]:
    """All figures."""
    torch.set_num_threads(1)
    team = Team()
    before = machine(gpu=team.device.type == "cuda")
    device = before.get("gpu", before["cpu"])
    spawned = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with scratch() as cache, spawned as rival:
        stored = Workspace(team, cache)
        recomputed = Workspace(team, cache, PrefixStoreConfig(mode="recompute"))
        configs = {thawed: trial(examples, batch_size, precision, thawed) for thawed in depths}
        # The deepest boundary last, each from tokens: it shares nothing with one below.
        filled = {t: fill(stored, configs[t], t) for t in sorted(depths) if t < BLOCKS}
        lengths = stored.open(configs[depths[0]]).data.train.lengths
        sides: dict[str, Callable[[int], float]] = {
            "stored": lambda t: thaw_epoch(stored, configs[t]),
            "recomputed": lambda t: thaw_epoch(recomputed, configs[t]),
            "trainer": lambda t: rival.submit(trainer_epoch, configs[t], cache, t, _clock).result(),
        }
        seconds: dict[int, dict[str, list[float]]] = {t: {side: [] for side in sides} for t in depths}
        for _ in range(repeats):
            for thawed in depths:
                for side, run in sides.items():
                    gc.collect()
                    seconds[thawed][side].append(run(thawed))
    rows = []
    for thawed in depths:
        best = {side: min(values) for side, values in seconds[thawed].items()}
        rows.append(
            {
                "thawed_blocks": thawed,
                "seconds": best,
                "all_seconds": seconds[thawed],
                "trainer_over_stored": best["trainer"] / best["stored"],
                "trainer_over_recomputed": best["trainer"] / best["recomputed"],
                "recomputed_over_stored": best["recomputed"] / best["stored"],
                "target": TARGETS.get(thawed),
                "fill": filled.get(thawed),
            }
        )
    return {
        "machine": {**before, "device": device, "threads": 1, "torch": torch.__version__},
        "examples": examples,
        "mean_tokens": float(np.mean(lengths)),
        "batch_size": batch_size,
        "precision": precision,
        "repeats": repeats,
        "clock": _clock,
        "rows": rows,
    }


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{found['examples']} sentences, batch {found['batch_size']}, {found['precision']}, one thread, "
        f"{found['machine']['device']}; {found['clock']} seconds per epoch, best of {found['repeats']}",
        f"{'thawed':>6} {'stored':>8} {'recomp.':>8} {'Trainer':>8} {'T/stored':>9} {'target':>7} "
        f"{'T/recomp.':>9} {'fill once':>16}",
    ]
    for row in found["rows"]:
        seconds, fill = row["seconds"], row["fill"]
        target = f">={row['target']:g}" if row["target"] else ""
        once = f"{fill['seconds']:.1f} s, {fill['megabytes']:.0f} MB" if fill else ""
        lines.append(
            f"{row['thawed_blocks']:>6} {seconds['stored']:>8.2f} {seconds['recomputed']:>8.2f} "
            f"{seconds['trainer']:>8.2f} {row['trainer_over_stored']:>9.2f} {target:>7} "
            f"{row['trainer_over_recomputed']:>9.2f} {once:>16}"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 1, 2, 4, 6])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    asked = parser.parse_args()
    global _clock
    _clock = asked.clock
    found = measure(asked.examples, asked.batch_size, asked.precision, asked.depths, asked.repeats)
    tell(found, asked.out, table(found))


if __name__ == "__main__":
    main()
