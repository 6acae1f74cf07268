"""Schedule `gradual`: the head first, then one more block at a time from the top down.

Gradual unfreezing as in Howard & Ruder, "Universal Language Model Fine-tuning for Text
Classification", ACL 2018, section 3.3. There a layer thaws after each epoch; here at points
of the training that can be stated, because trials are often shorter than the model is deep.
"""

from itertools import pairwise

from training.config import UnfreezingConfig
from training.schedules.phase import Phase, check_depth, top_blocks


def gradual(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float) -> tuple[Phase, ...]:
    """`depth + 1` phases: `head`, `gradual-1` (the top block), `gradual-2` ...

    Block i of `depth`, counted from 1 at the top, thaws at `points[i - 1] * epochs`. Without
    points it is `i / (2 * depth)`: evenly over the first half, so that the whole depth trains
    for the second.

    Raises ValueError where `depth` is deeper than the model, or `points` are not one for each
    block, ascending.
    """
    depth, points = unfreezing.depth, unfreezing.points
    check_depth(depth, num_blocks)
    if points is None:
        points = [i / (2 * depth) for i in range(1, depth + 1)]
    if len(points) != depth:
        raise ValueError(
            f"unfreezing.points: {len(points)} points for unfreezing.depth {depth}; "
            f"give one for each block that thaws, or none to spread them evenly"
        )
    if any(later <= earlier for earlier, later in pairwise(points)):
        raise ValueError(f"unfreezing.points: {points} must ascend; sort them and drop repeats")
    first = Phase(name="head", start_epoch=0.0, blocks=())
    later_phases = (
        Phase(name=f"gradual-{i}", start_epoch=point * epochs, blocks=top_blocks(i, num_blocks))
        for i, point in enumerate(points, start=1)
    )
    return (first, *later_phases)
