"""The workers of one trial as they see each other: rank 0 asks, all ranks obey together."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# A warm gang waits for its next trial as long as the sweep leaves it waiting.
_PATIENCE = timedelta(days=30)
# One may wait for storage that is away, for longer than NCCL's own ten minutes.
JOINT_PATIENCE = timedelta(minutes=30)


def join(store: dist.Store, *, rank: int, size: int) -> None:
    """Make the process group of workers that find each other by `store`; waits until all are there."""
    # Collectives run where the tensors are.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=JOINT_PATIENCE)


class Team:
    """Rank, device and the collectives that the training loop needs.

    Joins the process group that stands, or makes one of a single process. Objects go over
    a gloo group of their own, so that waiting for an order never blocks the accelerator.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        if not dist.is_initialized():
            os.environ.setdefault("LOCAL_RANK", "0")
            join(dist.HashStore(), rank=0, size=1)
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        if device is None:
            local = int(os.environ.get("LOCAL_RANK", "0"))
            device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        self.device = device
        self._orders = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.size > 1 else None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the one that asks and reports."""
        return self.rank == 0

    def seed(self, seed: int) -> None:
        """Seed what torch draws on the CPU and on this rank's device."""
        # `torch.manual_seed` asks every kind of device there might be, and keeps a stack trace of each
        # call for a CUDA that is not there: a millisecond, and memory that is never given back.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` on every rank."""
        if self.size == 1:
            return value
        box = [value if self.leads else None]
        dist.broadcast_object_list(box, src=0, group=self._orders)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._orders)
        return values

    def agree(self, call: Callable[[], T]) -> T:
        """What `call` returns here, once it has worked on every rank: none goes on alone.

        Raises:
            ValueError: on all ranks, where it raised one on any.
        """
        failure: ValueError | None = None
        try:
            value = call()
        except ValueError as error:
            failure = error
        for rank, other in enumerate(self.gather(failure and str(failure))):
            if failure is not None:
                raise failure
            if other is not None:
                raise ValueError(f"{other} (on worker {rank} of {self.size})")
        return value

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of `tensor` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor
