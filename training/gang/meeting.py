"""How the workers of a gang find one another.

Ray's own way for torch has the processes that own and control a gang import torch too, for nothing.
"""

from __future__ import annotations

import os

from ray.train.backend import Backend, BackendConfig


class _Sharing(Backend):
    # A worker sees all GPUs of its gang on its node; LOCAL_RANK says which one is its own.
    share_cuda_visible_devices = True


class Workers(BackendConfig):
    """What Ray Train sets up for a gang: which GPUs its workers see. The rest is theirs, in `meet`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Acts before the workers start."""
        return _Sharing


def meet() -> None:
    """Join the gang's process group, of a worker group that Ray Train has just started.

    A worker that is alone joins none.
    """
    import ray
    import torch
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero
    from torch.distributed import TCPStore

    from training.team import JOINT_PATIENCE, join

    context = get_context()
    rank, size, local = context.get_world_rank(), context.get_world_size(), context.get_local_rank()
    # As torchrun sets them: DeepSpeed and others look here.
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    if size == 1:
        return
    # On a port that it has taken already: one that was only found to be free may be gone.
    hosted = None
    host, port = ray.util.get_node_ip_address(), 0
    if rank == 0:
        hosted = TCPStore(host, port, is_master=True, timeout=JOINT_PATIENCE)
        port = hosted.port
    host, port = broadcast_from_rank_zero((host, port))
    join(hosted or TCPStore(host, port, timeout=JOINT_PATIENCE), rank=rank, size=size)
