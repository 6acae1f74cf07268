"""The frozen prefix: a frozen layer is data, the engine only ever holds the suffix.

What lies below the boundary neither trains nor drops out, so its output for an example is a
constant of the pretrained model. It is computed in canonical batches (`canonical`), once for a
node where there is room to store it (`store`), and again for every batch where there is not:
the bits are the same.
"""

from training.prefix.feed import Feed, Frozen, Rows
from training.prefix.store import clear, shelves

__all__ = ["Feed", "Frozen", "Rows", "clear", "shelves"]
