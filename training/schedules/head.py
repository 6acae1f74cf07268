"""Schedule `head`: only the head trains; the model is a fixed feature extractor."""

from training.config import UnfreezingConfig
from training.schedules.phase import Phase


def head(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float, seed: int) -> tuple[Phase, ...]:
    """One phase with every block and the embeddings frozen."""
    return (Phase(name="head", start_epoch=0.0, blocks=()),)
