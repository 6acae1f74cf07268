"""Schedule `gradual`: the head first, then one more block at a time from the top down.

Gradual unfreezing as in Howard & Ruder, "Universal Language Model Fine-tuning for Text
Classification", ACL 2018, section 3.3. There a layer thaws after each epoch; here at points
of the training that can be stated, because trials are often shorter than the model is deep.
"""

from training.config import UnfreezingConfig
from training.schedules.phase import Phase, thaw_epochs, top_blocks


def gradual(unfreezing: UnfreezingConfig, num_blocks: int, epochs: float, seed: int) -> tuple[Phase, ...]:
    """`depth + 1` phases: `head`, `gradual-1` (the top block), `gradual-2` ...

    Block i of `depth`, counted from 1 at the top, thaws at the i-th of `thaw_epochs`, which
    says what ValueError it raises.
    """
    first = Phase(name="head", start_epoch=0.0, blocks=())
    later_phases = (
        Phase(name=f"gradual-{i}", start_epoch=start, blocks=top_blocks(i, num_blocks))
        for i, start in enumerate(thaw_epochs(unfreezing, num_blocks, epochs), start=1)
    )
    return (first, *later_phases)
