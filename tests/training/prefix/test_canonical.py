import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.prefix.canonical import canonical

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, rows=st.integers(1, 9), data=st.data())
def test_every_example_goes_once_in_a_shape_of_its_own_length(lengths, rows, data) -> None:  # type: ignore[no-untyped-def]
    all_lengths = np.array(lengths)
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    shapes: dict[int, int] = {}
    for batch in canonical(all_lengths, np.array(chosen), rows):
        assert len(batch.indices) == rows
        assert 1 <= batch.count <= rows
        own = all_lengths[batch.indices]
        assert own.max() <= batch.width <= max(lengths)
        # Either all rows have padding, or none has: the same kernels run whoever the neighbours are.
        assert len({length < batch.width for length in own}) == 1
        shapes |= {int(index): batch.width for index in batch.indices[: batch.count]}
    assert sorted(shapes) == sorted(chosen)
    # The shape is the same in whatever company.
    for batch in canonical(all_lengths, np.arange(len(lengths)), rows):
        for index in batch.indices:
            assert shapes.get(int(index), batch.width) == batch.width


def test_widths_are_multiples_but_for_the_greatest() -> None:
    lengths = np.array([1, 7, 8, 9, 20, 21])
    found = {int(i): batch.width for batch in canonical(lengths, np.arange(6), 1) for i in batch.indices}
    assert found == {0: 8, 1: 8, 2: 16, 3: 16, 4: 21, 5: 21}
    batches = [batch.indices.tolist() for batch in canonical(lengths, np.arange(6), 2)]
    assert batches == [[5, 5], [4, 4], [2, 3], [0, 1]]
