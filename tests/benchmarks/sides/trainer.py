"""The strongest plain rival: Optuna, and Hugging Face's Trainer with dynamic padding in warm processes.

    python -m tests.benchmarks.sides.trainer JOB OUT

One process a core, one thread each; each loads libraries, model and data once. Nothing is written to disk.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import optuna

from tests.benchmarks.jobs import Job, Stage, Task, parse

_warm: dict[str, Any] = {}


def load(job: Job) -> None:
    """Make a process ready: once for all of its trials."""
    import torch

    from tests.benchmarks.sides import plain

    torch.set_num_threads(1)
    plain.quiet()
    found = plain.model(job, seed=0)
    _warm.update(
        model=found,
        pretrained={name: tensor.clone() for name, tensor in found.state_dict().items()},
        tokenizer=plain.tokenizer(job),
        train=plain.rows(job, "train"),
        validation=plain.rows(job, "validation"),
    )


def train(job: Job, task: Task) -> dict[str, float]:
    """One trial. Returns its accuracy and what it took."""
    import transformers

    from tests.benchmarks.sides import plain

    began = time.perf_counter()
    model, stages = _warm["model"], task.stages
    model.load_state_dict(_warm["pretrained"])
    transformers.set_seed(task.seed)
    for parameter in model.classifier.parameters():
        parameter._is_hf_initialized = False
    model._init_weights(model.classifier)
    # The optimizer takes what trains at any time; what has no gradient yet it passes over.
    plain.thaw(model, [prefix for stage in stages for prefix in stage.thawed])
    with tempfile.TemporaryDirectory() as directory:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=directory,
                num_train_epochs=1,
                per_device_train_batch_size=task.batch_size,
                per_device_eval_batch_size=plain.EVALUATED_TOGETHER,
                learning_rate=task.learning_rate,
                warmup_steps=plain.warmup_steps(job, plain.total_steps(job, task)),
                weight_decay=job.defaults.weight_decay,
                optim="adamw_torch_fused",
                bf16=job.precision == "bf16",
                use_cpu=job.gpus == 0,
                report_to=[],
                eval_strategy="epoch",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=task.seed,
            ),
            train_dataset=_warm["train"],
            eval_dataset=_warm["validation"],
            data_collator=transformers.DataCollatorWithPadding(_warm["tokenizer"]),
            compute_metrics=lambda found: {"accuracy": plain.accuracy(found.predictions, found.label_ids)},
            callbacks=[_thawing(stages)],
        )
        trainer.train()
        told = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    return {"accuracy": told[-1]["eval_accuracy"], "seconds": time.perf_counter() - began}


def _thawing(stages: tuple[Stage, ...]) -> Any:
    """A callback that thaws what is due before a step."""
    import transformers

    from tests.benchmarks.sides import plain

    class Thawing(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            for stage in stages:
                if stage.start == state.global_step:
                    plain.thaw(model, stage.thawed)

    return Thawing()


def run(job: Job) -> list[dict[str, float]]:
    """All trials of a job, through a study in which they are enqueued."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for task in job.tasks:
        study.enqueue_trial({"trial": task.number})
    found: list[dict[str, float]] = []
    running: dict[Future[dict[str, float]], optuna.Trial] = {}
    spawn = multiprocessing.get_context("spawn")
    left = len(job.tasks)
    with ProcessPoolExecutor(job.processes, mp_context=spawn, initializer=load, initargs=(job,)) as pool:
        while left or running:
            while left and len(running) < job.processes:
                trial = study.ask()
                number = trial.suggest_int("trial", 0, len(job.tasks) - 1)
                running[pool.submit(train, job, job.tasks[number])] = trial
                left -= 1
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                trial, result = running.pop(future), future.result()
                study.tell(trial, result["accuracy"])
                found.append({"number": trial.params["trial"], **result})
    return found


if __name__ == "__main__":
    began = time.time()
    found = run(parse(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps({"began": began, "ended": time.time(), "trials": found}))
