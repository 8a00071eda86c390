"""Values of known widths come back, one by one or in groups, with the same bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flwr_splitfc.codec.format.bits import (
    bit_runs,
    group_bit_runs,
    read_bits,
    read_group_bits,
)
from flwr_splitfc.codec.format.symbols import SymbolReader, pack_symbols


@given(
    groups=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 32)), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_groups_are_values_of_equal_width(
    groups: list[tuple[int, int]], seed: int
) -> None:
    sizes, group_widths = np.array(groups).T
    widths = np.repeat(group_widths, sizes)
    values = np.random.default_rng(seed).integers(0, 1 << widths)
    ends = np.cumsum(sizes).tolist()
    owns = [slice(end - size, end) for end, (size, _) in zip(ends, groups, strict=True)]
    own_widths = list(zip(owns, group_widths.tolist(), strict=True))

    data = pack_symbols(group_bit_runs(values, own_widths))
    assert data == pack_symbols(bit_runs(values, widths))
    reader = SymbolReader(memoryview(data))
    assert read_bits(reader, widths).tolist() == values.tolist()
    reader = SymbolReader(memoryview(data))
    back = read_group_bits(reader, len(values), own_widths)
    reader.close()
    assert back.tolist() == values.tolist()
