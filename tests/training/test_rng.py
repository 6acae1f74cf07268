import torch

from training.rng import derive


def test_known_values() -> None:
    """The same on every machine and in every version: resumed trials depend on it."""
    assert derive(0, "head") == 1_203_259_288_083_551_018
    assert derive(5, "dropout", 12, 0, 1) == 3_709_498_288_940_860_002


def test_every_part_counts() -> None:
    purposes = [
        (0, "head"), (1, "head"), (0, "batches"), (0,), (0, "dropout", 1, 2, 0), (0, "dropout", 1, 0, 2),
        (0, "dropout", 12, 0), (0, "dropout", "1", 2, 0),
    ]  # fmt: skip
    assert len({derive(*purpose) for purpose in purposes}) == len(purposes)  # type: ignore[arg-type]


def test_fits_a_generator() -> None:
    seeds = [derive(seed, "head") for seed in range(500)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 500
    torch.Generator().manual_seed(max(seeds))
    # All bits are in use.
    assert max(seeds) > 2**62
