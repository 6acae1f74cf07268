"""What can be tried on a node before a sweep runs there."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from typing import Any

from training.config import DataConfig, ModelConfig, TaskConfig
from training.store import Place

_FLOATS = 4 * 2**20
_TIMES = 5
_TIMEOUT = timedelta(seconds=60)


def all_reduce(rank: int, size: int, address: str, gpu: bool) -> tuple[str, float]:
    """One rank of an all-reduce of 16 MiB.

    Args:
        address: `HOST:PORT` at rank 0.

    Returns:
        The backend, and the algorithm's bandwidth: GB reduced in a second.
    """
    import torch
    import torch.distributed as dist

    backend = "nccl" if gpu else "gloo"
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    options: dict[str, Any] = {"device_id": device} if gpu else {}
    dist.init_process_group(
        backend, init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=_TIMEOUT, **options
    )
    try:
        tensor = torch.ones(_FLOATS, device=device)
        dist.all_reduce(tensor)
        if tensor[0].item() != size:
            raise RuntimeError(f"an all-reduce of ones over {size} ranks gave {tensor[0].item():g}")
        began = time.perf_counter()
        for _ in range(_TIMES):
            dist.all_reduce(tensor)
        if gpu:
            torch.cuda.synchronize()
        return backend, _TIMES * tensor.nbytes / (time.perf_counter() - began) / 1e9
    finally:
        dist.destroy_process_group()


def model(config: ModelConfig) -> str:
    """Finds the model's files, or gets them from the hub."""
    from training.models import load_config, model_directory

    model_directory(config)
    return f"{config.name}: {load_config(config).model_type}"


def data(model: ModelConfig, task: TaskConfig, config: DataConfig) -> str:
    """Reads the data and tokenises it, which a trial would do otherwise."""
    from training.data import prepare

    found = prepare(model, task, config)
    return f"{len(found.train):,} examples to train on"


def storage(uri: str, token: str) -> str:
    """Reads what the driver has written to the storage under `token`, and writes an object of its own."""
    place = Place(uri)
    try:
        seen = (place / token).read()
    except FileNotFoundError:
        raise RuntimeError(f"{uri} is there, but is not the one that the driver sees") from None
    began = time.perf_counter()
    own = place / f"{token}-{uuid.uuid4().hex}"
    try:
        own.write(seen)
        if own.read() != seen:
            raise RuntimeError(f"{uri}: what is read is not what was written")
    finally:
        own.remove()
    return f"written and read back in {1e3 * (time.perf_counter() - began):.0f} ms"
