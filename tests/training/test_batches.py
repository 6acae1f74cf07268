import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.batches import collate, epoch_batches, evaluation_batches, split, steps_per_epoch, width
from training.data import Split


def some_lengths(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 65, n)


def make_split(lengths: list[int], *, segments: bool = False) -> Split:
    total = sum(lengths)
    return Split(
        ids=np.arange(100, 100 + total, dtype=np.int32),
        segments=(np.arange(total) % 2).astype(np.int8) if segments else None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=np.arange(len(lengths), dtype=np.int64) % 2,
    )


@pytest.mark.parametrize(("n", "batch_size"), [(2000, 16), (2000, 64), (33, 32), (32, 32), (7, 32), (1, 1)])
def test_an_epoch_has_every_example_once(n: int, batch_size: int) -> None:
    batches = epoch_batches(some_lengths(n), batch_size, seed=3, epoch=0)
    assert len(batches) == steps_per_epoch(n, batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert all(batch.dtype == np.int64 for batch in batches)


def test_batches_follow_from_seed_and_epoch_alone() -> None:
    lengths = some_lengths(500)
    first = epoch_batches(lengths, 16, seed=1, epoch=2)
    np.random.default_rng().random(3)  # other draws do not matter
    again = epoch_batches(lengths, 16, seed=1, epoch=2)
    # So the batch of any step is had directly: nothing before it has to be drawn.
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (epoch_batches(lengths, 16, seed=1, epoch=3), epoch_batches(lengths, 16, seed=2, epoch=2)):
        assert not np.array_equal(np.concatenate(first), np.concatenate(other))


def padded(batches: list[np.ndarray], lengths: np.ndarray) -> int:
    return sum(len(batch) * width(int(lengths[batch].max()), cap=64) for batch in batches)


def test_bucketing_saves_padding_and_still_mixes() -> None:
    lengths = some_lengths(2000)
    batches = epoch_batches(lengths, 32, seed=0, epoch=0)
    shuffled = np.array_split(np.random.default_rng(0).permutation(2000), len(batches))
    assert padded(batches, lengths) < 0.75 * padded(shuffled, lengths)
    means = [lengths[batch].mean() for batch in batches]
    assert means != sorted(means)
    # Neighbours in one epoch are not neighbours in the next.
    other = epoch_batches(lengths, 32, seed=0, epoch=1)
    shared = [max(len(np.intersect1d(a, b)) for b in other) for a in batches[:10]]
    assert max(shared) < 24


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 70), world=st.integers(1, 9), micro=st.integers(1, 40), seed=st.integers(0, 99))
def test_split_is_exact(n: int, world: int, micro: int, seed: int) -> None:
    lengths = some_lengths(200, seed)
    batch = np.random.default_rng(seed).permutation(200)[:n]
    steps = split(batch, lengths, world, micro)
    assert len(steps) == math.ceil(math.ceil(n / world) / micro)
    real = []
    for ranks in steps:
        assert len(ranks) == world
        for cell in ranks:
            assert 1 <= len(cell.indices) <= micro
            assert cell.indices.dtype == np.int64
            assert cell.weights.dtype == np.float32
            assert cell.weights.shape == cell.indices.shape
            assert set(cell.weights) in ({0.0}, {1.0})
            assert np.isin(cell.indices, batch).all()
            real.extend(cell.indices[cell.weights == 1])
    assert sorted(real) == sorted(batch)
    assert np.all(np.diff(lengths[real]) >= 0)


def test_idle_ranks_repeat_the_shortest_example() -> None:
    lengths = np.array([9, 5, 7])
    (ranks,) = split(np.array([0, 1, 2]), lengths, 4, 8)
    assert [cell.indices.tolist() for cell in ranks] == [[1], [2], [0], [1]]
    assert [cell.weights.tolist() for cell in ranks] == [[1], [1], [1], [0]]


def test_micro_batches_are_of_similar_size_and_width() -> None:
    lengths = some_lengths(64)
    steps = split(np.arange(64), lengths, 2, 8)
    assert [[len(cell.indices) for cell in ranks] for ranks in steps] == [[8, 8]] * 4
    for ranks in steps:
        longest = [lengths[cell.indices].max() for cell in ranks]
        assert max(longest) - min(longest) <= 16


@pytest.mark.parametrize(
    ("longest", "cap", "columns"), [(1, 64, 8), (8, 64, 8), (9, 64, 16), (57, 60, 60), (64, 64, 64)]
)
def test_width(longest: int, cap: int, columns: int) -> None:
    assert width(longest, cap=cap) == columns


def test_width_of_another_multiple() -> None:
    assert width(17, cap=64, multiple=16) == 32


@pytest.mark.parametrize("segments", [False, True])
def test_collate(segments: bool) -> None:
    data = make_split([3, 1, 4, 2], segments=segments)
    arrays = collate(data, np.array([2, 0, 2, 1]), 6, pad_id=9)
    assert arrays["input_ids"].tolist() == [
        [104, 105, 106, 107, 9, 9],
        [100, 101, 102, 9, 9, 9],
        [104, 105, 106, 107, 9, 9],
        [103, 9, 9, 9, 9, 9],
    ]
    assert arrays["attention_mask"].sum(1).tolist() == [4, 3, 4, 1]
    assert arrays["labels"].tolist() == [0, 0, 0, 1]
    assert all(array.dtype == np.int64 for array in arrays.values())
    assert ("token_type_ids" in arrays) == segments
    if segments:
        assert arrays["token_type_ids"].tolist()[1] == [0, 1, 0, 0, 0, 0]


def test_evaluation_batches() -> None:
    lengths = some_lengths(777)
    batches = evaluation_batches(lengths, 1024)
    assert sorted(np.concatenate(batches)) == list(range(777))
    assert np.all(np.diff(lengths[np.concatenate(batches)]) <= 0)
    sizes = [len(batch) * width(int(lengths[batch].max()), cap=64) for batch in batches]
    assert max(sizes) <= 1024
    assert len(batches) <= 1.25 * sum(sizes) / 1024 + 1


def test_evaluation_batches_take_what_is_longer_than_the_bound() -> None:
    assert [batch.tolist() for batch in evaluation_batches(np.array([5, 40, 7]), 16)] == [[1], [2, 0]]
    assert evaluation_batches(np.zeros(0, np.int64), 16) == []
