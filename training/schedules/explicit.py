"""Schedule `phases`: the phases as the user lists them."""

from training.config import PhaseConfig, UnfreezingConfig
from training.schedules.phase import Phase


def explicit(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float, seed: int) -> tuple[Phase, ...]:
    """One phase for each entry of `unfreezing.phases`, named `phase-1`, `phase-2` ...

    An entry says all that trains from its start on: what it leaves out is frozen (again).

    Raises ValueError where there are no entries, the first does not start at 0, starts do not
    ascend or are not before `epochs`, or a block is not in the model.
    """
    if not unfreezing.phases:
        raise ValueError(
            "unfreezing.phases: schedule `phases` needs a list of phases; "
            "add one, such as [{start: 0, thaw: [head]}, {start: 1, thaw: [head, -1]}]"
        )
    listed: list[Phase] = []
    for i, phase in enumerate(unfreezing.phases):
        path = f"unfreezing.phases[{i}]"
        if i == 0 and phase.start != 0:
            raise ValueError(f"{path}.start: the first phase starts at epoch {phase.start:g}; use 0")
        if listed and phase.start <= listed[-1].start_epoch:
            raise ValueError(
                f"{path}.start: {phase.start:g} is not after the phase before it, "
                f"which starts at {listed[-1].start_epoch:g}; list phases in the order they run"
            )
        if phase.start >= epochs:
            raise ValueError(
                f"{path}.start: {phase.start:g} is not before the end of training at epoch {epochs:g}; "
                f"use less than {epochs:g}, or drop the phase"
            )
        listed.append(_phase(f"phase-{i + 1}", phase, num_blocks, path))
    return tuple(listed)


def _phase(name: str, phase: PhaseConfig, num_blocks: int, path: str) -> Phase:
    everything = "all" in phase.thaw
    blocks = set(range(num_blocks)) if everything else set()
    for item in phase.thaw:
        if isinstance(item, str):
            continue
        if not -num_blocks <= item < num_blocks:
            raise ValueError(
                f"{path}.thaw: block {item} is not in the model, which has {num_blocks} blocks; "
                f"use {-num_blocks} to {num_blocks - 1}"
            )
        blocks.add(item % num_blocks)
    return Phase(
        name=name,
        start_epoch=float(phase.start),
        blocks=tuple(sorted(blocks)),
        head=everything or "head" in phase.thaw,
        embeddings=everything or "embeddings" in phase.thaw,
    )
