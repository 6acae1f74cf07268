"""Schedule `chain-thaw`: each layer for a while alone, and at last all of them together.

Felbo et al., "Using millions of emoji occurrences to learn any-domain representations for
detecting sentiment, emotion and sarcasm", EMNLP 2017, section 3.3: the new layers first,
then the others one at a time from the first to the last, then the whole network. There
each of these runs until validation no longer improves; here all are equally long.
"""

from training.config import UnfreezingConfig
from training.schedules.phase import Phase, top_blocks


def chain_thaw(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float, seed: int) -> tuple[Phase, ...]:
    """`num_blocks + 3` phases of equal length: `head`, `embeddings`, `block-0` ... and `all`.

    The head is the new layer: it trains first and not again until `all`.
    """
    length = epochs / (num_blocks + 3)
    return (
        Phase(name="head", start_epoch=0.0, blocks=()),
        Phase(name="embeddings", start_epoch=length, blocks=(), head=False, embeddings=True),
        *(
            Phase(name=f"block-{block}", start_epoch=(block + 2) * length, blocks=(block,), head=False)
            for block in range(num_blocks)
        ),
        Phase(
            name="all",
            start_epoch=(num_blocks + 2) * length,
            blocks=top_blocks(num_blocks, num_blocks),
            embeddings=True,
        ),
    )
