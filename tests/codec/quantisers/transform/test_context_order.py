"""The order by context is that of a stable sort of all coefficients."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flwr_splitfc.codec.quantisers.transform.context_order import CONTEXTS, ContextOrder


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 40),
    kinds=st.integers(1, 6),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_places_and_positions_are_those_of_a_stable_sort(
    rows: int, columns: int, kinds: int, share: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    by_kind = draw.integers(0, CONTEXTS, (kinds, columns)).astype(np.uint8)
    kind_of_row = draw.integers(0, kinds, rows)
    order = ContextOrder(by_kind, kind_of_row)

    contexts = by_kind[kind_of_row].ravel()
    sorted_places = np.argsort(contexts, kind="stable")
    sizes = np.bincount(contexts, minlength=CONTEXTS)
    assert order.count == rows * columns
    assert order.sizes.tolist() == sizes.tolist()
    assert order.starts.tolist() == [0, *np.cumsum(sizes)[:-1]]

    wanted = np.flatnonzero(draw.random(rows * columns) < share)
    assert order.places(wanted).tolist() == sorted_places[wanted].tolist()
    positions, at = order.positions(wanted)
    assert sorted_places[positions].tolist() == wanted[at].tolist()
    assert bool((np.diff(positions) > 0).all())
    assert order.counts(positions).sum() == len(wanted)
    assert order.contexts(wanted).tolist() == contexts[wanted].tolist()
