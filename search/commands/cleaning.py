"""Commands that give back what Thaw keeps to save time."""

from __future__ import annotations


def gc() -> None:
    """Free what the prefix store keeps on this machine, except what running trials read."""
    from training.data import cache_root
    from training.prefix.store import clear

    freed, left = clear(cache_root())
    kept = f"; {left / 1e6:,.1f} MB are in use" if left else ""
    print(f"freed {freed / 1e6:,.1f} MB of the prefix store{kept}")
