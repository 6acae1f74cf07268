"""What does not fit in memory, seen where it happens and put into words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from training import memory
from training.checkpoint import State
from training.plan import Stretch
from training.sizes import Moment
from training.team import Team
from training.trial import Trial, is_out_of_memory


class TooLarge(Exception):
    """Something did not fit.

    Args:
        state: as if nothing of it had happened, to be repeated from; None where there are several workers.
    """

    def __init__(self, moment: Moment, state: State | None, message: str) -> None:
        super().__init__(message)
        self.moment: Moment = moment
        self.state = state


@contextmanager
def watched(moment: Moment, team: Team, resume: State | Callable[[], State]) -> Iterator[None]:
    """Turn an allocation that fails in the block into `TooLarge`, to be repeated from `resume`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Others may wait for this worker, so nothing is gathered: their trial goes on from a checkpoint.
        state = None
        if team.size == 1:
            state = resume if isinstance(resume, State) else resume()
        raise TooLarge(moment, state, str(error)) from error


def shortage(trial: Trial, stretch: Stretch) -> str:
    """What a phase would have needed."""
    stretches = trial.plan.stretches
    bytes_needed = memory.needed(
        memory.shape_of(trial.setting.blocks),
        trial.config.training,
        stretch.phase,
        tokens=trial.setting.max_length,
        workers=trial.team.size,
        earlier=[other.phase for other in stretches[: stretches.index(stretch)]],
        device="cuda" if trial.team.device.type == "cuda" else "cpu",
        stored=bool(trial.setting.frozen.shelves.roots),
    )
    return (
        f"phase {stretch.phase.name} does not fit in memory at a micro-batch of 1 example: "
        f"a worker needs about {bytes_needed / 1e6:,.0f} MB"
    )
