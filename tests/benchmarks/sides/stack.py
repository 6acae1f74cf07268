"""The documented stack: a Tune function builds a TorchTrainer per trial, whose worker runs DeepSpeed ZeRO-2.

    python -m tests.benchmarks.sides.stack JOB OUT

Each worker loads model and data and pads to the greatest length, as the stack's examples do. DeepSpeed's
shared-memory operator, which would be compiled for a minute at first use, is switched off. A schedule of
several phases gets an engine for each. Nothing is written to disk but what Ray itself writes. Trials
are marked for `switch`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.jobs import Job, Task, parse
from tests.benchmarks.marks import mark


def work(config: dict[str, Any]) -> None:
    """A worker's function: one trial from its libraries to its accuracy."""
    began = time.perf_counter()
    job: Job = config["job"]
    task: Task = config["task"]
    os.environ["DS_ACCELERATOR"] = "cuda" if job.gpus else "cpu"
    mark(f"worker of trial {task.number} started")
    import deepspeed
    import numpy as np
    import ray.train
    import torch
    from torch.utils.data import DataLoader

    from tests.benchmarks.sides import plain

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    mark("imported")
    torch.set_num_threads(1)
    plain.quiet()
    model = plain.model(job, task.seed)
    padded = {"padding": "max_length"}
    train, validation = (plain.rows(job, split, **padded) for split in ("train", "validation"))
    shuffled = torch.Generator().manual_seed(task.seed)
    batches = DataLoader(train, task.batch_size, shuffle=True, generator=shuffled, collate_fn=_collate)
    mark("loaded")
    total = plain.total_steps(job, task)
    warmup = plain.warmup_steps(job, total)
    starts = {stage.start: stage.thawed for stage in task.stages}
    engine: Any = None
    for step, batch in enumerate(batches):
        if step in starts:
            if engine is not None:
                engine.destroy()
            plain.thaw(model, starts[step])
            engine = _engine(deepspeed, model, job, task, step, warmup, total)
            mark("engine built")
            model.train()
        loss = engine(**_to(engine.device, batch)).loss
        engine.backward(loss)
        engine.step()
        if not step:
            if job.gpus:
                torch.cuda.synchronize()
            mark("step done")
    model.eval()
    with torch.no_grad():
        loader = DataLoader(validation, plain.EVALUATED_TOGETHER, collate_fn=_collate)
        found = [
            (engine(**_to(engine.device, batch)).logits.float().cpu().numpy(), batch["labels"].numpy())
            for batch in loader
        ]
    logits, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    seconds = time.perf_counter() - began
    ray.train.report({"accuracy": plain.accuracy(logits, labels), "seconds": seconds})
    mark(f"trial {task.number} ended")


def _engine(deepspeed: Any, model: Any, job: Job, task: Task, start: int, warmup: int, total: int) -> Any:
    import torch

    decayed = job.defaults.weight_decay
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": decayed},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=task.learning_rate,
        fused=True,
    )

    def factor(step: int) -> float:
        at = step + start
        return (at + 1) / warmup if at < warmup else max(0.0, (total - at) / max(1, total - warmup))

    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
        config={
            "train_micro_batch_size_per_gpu": task.batch_size,
            "gradient_clipping": job.defaults.max_grad_norm,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": job.precision == "bf16"},
            "steps_per_print": 10**9,
        },
    )
    return engine


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def _to(device: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def drive(config: dict[str, Any]) -> None:
    """Tune's function: builds and fits a trainer."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        work,
        train_loop_config=config["trial"],
        scaling_config=ScalingConfig(
            num_workers=1,
            use_gpu=config["gpus"] > 0,
            resources_per_worker={"CPU": 1, **({"GPU": config["gpus"]} if config["gpus"] else {})},
        ),
        run_config=RunConfig(storage_path=config["storage"], callbacks=[TuneReportCallback()]),
    ).fit()


def run(job: Job) -> list[dict[str, float]]:
    """All trials of a job, as many at a time as it says."""
    import ray
    from ray import tune

    # One more than there are, for Tune's functions, which only wait: each trial's worker has a core.
    ray.init(address="local", num_cpus=job.processes + 1, include_dashboard=False, log_to_driver=False)
    mark("connected")
    with tempfile.TemporaryDirectory() as storage:
        trials = [{"job": job, "task": task} for task in job.tasks]
        grid = tune.Tuner(
            tune.with_resources(drive, {"CPU": 0.01}),  # the workers have the cores
            param_space={"trial": tune.grid_search(trials), "storage": storage, "gpus": job.gpus},
            tune_config=tune.TuneConfig(max_concurrent_trials=job.processes),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
        found = []
        for result in grid:
            if result.error is not None:
                raise result.error
            number = result.config["trial"]["task"].number
            found.append({"number": number, **{k: result.metrics[k] for k in ("accuracy", "seconds")}})
    ray.shutdown()
    return found


if __name__ == "__main__":
    began = time.time()
    found = run(parse(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps({"began": began, "ended": time.time(), "trials": found}))
