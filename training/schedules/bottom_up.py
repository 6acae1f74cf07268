"""Schedule `bottom-up`: the head first, then one more block at a time from the bottom up.

The mirror of `gradual`, for inputs unlike those of pretraining: Lee et al., "Surgical
Fine-Tuning Improves Adaptation to Distribution Shifts", ICLR 2023, find that the first
layers are then the ones to tune.
"""

from training.config import UnfreezingConfig
from training.schedules.phase import Phase, thaw_epochs


def bottom_up(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float, seed: int) -> tuple[Phase, ...]:
    """`depth + 1` phases: `head`, `bottom-up-1` (block 0), `bottom-up-2` (blocks 0 and 1) ...

    The embeddings stay frozen, as in `gradual`: at full depth both end with the same layers
    thawed and differ in their order alone. The i-th block thaws at the i-th of `thaw_epochs`,
    which says what ValueError it raises.
    """
    first = Phase(name="head", start_epoch=0.0, blocks=())
    later_phases = (
        Phase(name=f"bottom-up-{i}", start_epoch=start, blocks=tuple(range(i)))
        for i, start in enumerate(thaw_epochs(unfreezing, num_blocks, epochs), start=1)
    )
    return (first, *later_phases)
