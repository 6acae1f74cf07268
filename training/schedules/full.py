"""Schedule `full`: everything trains from the start, as in ordinary fine-tuning."""

from training.config import UnfreezingConfig
from training.schedules.phase import Phase, top_blocks


def full(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float, seed: int) -> tuple[Phase, ...]:
    """One phase with head, all blocks and embeddings."""
    return (Phase(name="full", start_epoch=0.0, blocks=top_blocks(num_blocks, num_blocks), embeddings=True),)
