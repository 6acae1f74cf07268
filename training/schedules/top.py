"""Schedule `top`: the head and the top `depth` blocks train from the start."""

from training.config import UnfreezingConfig
from training.schedules.phase import Phase, check_depth, top_blocks


def top(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float, seed: int) -> tuple[Phase, ...]:
    """One phase. Raises ValueError where `depth` is deeper than the model."""
    depth = unfreezing.depth
    check_depth(depth, num_blocks)
    return (Phase(name=f"top-{depth}", start_epoch=0.0, blocks=top_blocks(depth, num_blocks)),)
