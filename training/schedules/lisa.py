"""Schedule `lisa`: head and embeddings all along, with a few blocks that are drawn anew now and then.

Pan et al., "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model
Fine-Tuning", NeurIPS 2024, algorithm 1: embeddings and (language modelling) head always
train, and with them `depth` of the blocks in between, drawn uniformly and without
replacement for every `interval`. There the optimizer forgets a block that freezes; here it
goes on with the moments it had when the block is drawn again.
"""

import math

from training.config import UnfreezingConfig
from training.rng import derive
from training.schedules.phase import Phase, check_depth

_MAX_DRAWS = 10_000


def lisa(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float, seed: int) -> tuple[Phase, ...]:
    """One phase for each draw, `lisa-1`, `lisa-2` ..., save where a draw repeats the one before.

    A draw depends on the seed and its number alone: a longer training begins with the draws
    of a shorter one.

    Raises ValueError where `depth` is deeper than the model, or `interval` so short that there
    would be more than 10,000 draws.
    """
    check_depth(unfreezing.depth, num_blocks)
    if epochs > unfreezing.interval * _MAX_DRAWS:
        raise ValueError(
            f"unfreezing.interval: {unfreezing.interval:g} makes more than {_MAX_DRAWS} draws in {epochs:g} "
            f"epochs; use at least {epochs / _MAX_DRAWS:g}"
        )
    drawn: list[Phase] = []
    for index in range(math.ceil(epochs / unfreezing.interval - 1e-9)):
        blocks = _draw(unfreezing.depth, num_blocks, derive(seed, "lisa", index))
        if not drawn or blocks != drawn[-1].blocks:
            start = index * unfreezing.interval
            drawn.append(Phase(name=f"lisa-{index + 1}", start_epoch=start, blocks=blocks, embeddings=True))
    return tuple(drawn)


def _draw(depth: int, num_blocks: int, seed: int) -> tuple[int, ...]:
    """`depth` different blocks, ascending: those that a seeded shuffle puts first.

    By hash and not by `random`, whose `sample` may differ from one Python to the next.
    """
    shuffled = sorted(range(num_blocks), key=lambda block: derive(seed, block))
    return tuple(sorted(shuffled[:depth]))
