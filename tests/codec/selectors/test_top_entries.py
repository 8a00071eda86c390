"""Top-S: each row's entries of largest magnitude."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec import BudgetError, PayloadError, TopEntries, cut_codec
from flwr_splitfc.codec.channels import Channels
from flwr_splitfc.codec.format.column_sets import pack_columns
from flwr_splitfc.codec.selectors.entry_selector import pack_entries, unpack_entries
from flwr_splitfc.codec.selectors.selection import Selection

VALUES = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 2.5, -7.0, 1e38, -1e38, 1e-45, -1e-40]
) | st.floats(-9, 9, width=32)


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    entries = draw(st.lists(VALUES, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(entries, dtype=torch.float32).reshape(rows, columns)


def largest_magnitudes(row: list[float], kept: int) -> list[float]:
    return sorted((abs(entry) for entry in row), reverse=True)[:kept]


@given(matrices(), st.integers(0, 12))
@settings(max_examples=200)
def test_each_row_keeps_its_largest(matrix: torch.Tensor, affordable: int) -> None:
    rows, columns = matrix.shape
    kept, link = TopEntries().select(
        matrix,
        Selection(Channels.of(matrix.shape), affordable=affordable, budget_bytes=0),
    )
    count = min(max(affordable, 1), columns)
    assert link.kept == count
    assert link.scale is None
    for row in range(rows):
        chosen = range(columns) if link.columns is None else link.columns[row].tolist()
        assert list(chosen) == sorted(set(chosen))
        assert kept[row].tolist() == [float(matrix[row, column]) for column in chosen]
        assert sorted(
            (abs(entry) for entry in kept[row].tolist()), reverse=True
        ) == largest_magnitudes(matrix[row].tolist(), count)


@given(matrices(), st.integers(0, 12))
@settings(max_examples=200)
def test_positions_come_back(matrix: torch.Tensor, affordable: int) -> None:
    rows, columns = matrix.shape
    selector = TopEntries()
    _, link = selector.select(
        matrix,
        Selection(Channels.of(matrix.shape), affordable=affordable, budget_bytes=0),
    )
    data = selector.pack(link)
    assert len(data) <= selector.most_bytes(rows, link.kept, columns)
    server, rest = selector.unpack(memoryview(data + b"rest"), rows, columns)
    assert bytes(rest) == b"rest"
    everywhere = torch.ones(rows, columns)
    assert torch.equal(
        server.expand(server.restrict(everywhere)),
        link.expand(link.restrict(everywhere)),
    )


@pytest.mark.parametrize("name", ["top-s", "rand-top-s"])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (1, 40), (3, 7), (64, 288), (256, 33)]
)
def test_as_many_entries_as_both_budgets_pay_for(
    name: str, rows: int, columns: int
) -> None:
    features = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    least = cut_codec(name).smallest_bits(rows, columns)
    for up, down in [(1.0, 9.0), (9.0, 1.0), (5.0, 5.0), (40.0, 40.0), (0.0, 0.0)]:
        cut = cut_codec(
            name, uplink_bits=max(up, least[0]), downlink_bits=max(down, least[1])
        )
        array, link = cut.encode_features(features)
        _, server_link = cut.decode_features(array, expect=(rows, columns))
        gradient = cut.encode_gradient(features, server_link)
        assert 8 * len(array.data) <= cut.uplink_bits * rows * columns
        assert 8 * len(gradient.data) <= cut.downlink_bits * rows * columns
        if (more := link.kept + 1) <= columns:
            up_bytes = cut.selector.most_bytes(rows, more, columns) + 2 * rows * more
            assert (
                8 * up_bytes > cut.uplink_bits * rows * columns
                or 16 * more > cut.downlink_bits * columns
            )


def test_smallest_bits_are_those_of_one_entry_a_row() -> None:
    features = torch.randn(64, 288)
    up, down = cut_codec("top-s").smallest_bits(64, 288)
    array, link = cut_codec(
        "top-s", uplink_bits=up, downlink_bits=down
    ).encode_features(features)
    assert link.kept == 1
    with pytest.raises(
        BudgetError, match=f"uplink_bits=.* the smallest that works is {up}"
    ):
        cut_codec("top-s", uplink_bits=up - 1e-4).encode_features(features)
    with pytest.raises(
        BudgetError, match=f"downlink_bits=.* the smallest that works is {down}"
    ):
        cut_codec("top-s", downlink_bits=down - 1e-4).check_budget(64, 288)
    short, link = cut_codec("top-s", uplink_bits=up - 1e-4).encode_features(
        features[:5], full_rows=64
    )
    assert link.kept == 1
    assert len(short.data) < len(array.data)


def test_gradient_reaches_the_kept_entries_alone() -> None:
    torch.manual_seed(0)
    cut, weight = cut_codec("top-s", uplink_bits=6, downlink_bits=6), torch.randn(40, 3)
    features = torch.randn(16, 40, requires_grad=True)
    up, link = cut.encode_features(features)
    seen, server_link = cut.decode_features(up, expect=(16, 40))
    mask = link.expand(torch.ones(16, link.kept))
    assert 0 < mask.sum() < mask.numel()
    torch.testing.assert_close(seen, features.detach() * mask, rtol=1e-3, atol=1e-6)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (x @ weight).square().mean()

    seen.requires_grad_()
    (at_server,) = torch.autograd.grad(loss(seen), seen)
    back = cut.decode_gradient(cut.encode_gradient(at_server, server_link), link)
    (expected,) = torch.autograd.grad(loss(features * mask), features)
    torch.testing.assert_close(back, expected, rtol=5e-3, atol=1e-3)
    assert bool((back[mask == 0] == 0).all())


def test_evaluation_keeps_the_largest_within_its_own_budget() -> None:
    features = torch.randn(32, 100)
    cut = cut_codec("top-s", downlink_bits=0.2, evaluation="codec", evaluation_bits=4)
    array, link = cut.encode_features(features, training=False)
    assert 8 * len(array.data) <= 32 * 100 * 4
    assert link.kept > 10


def entries(kept: int, columns: list[int], total: int) -> memoryview:
    return memoryview(struct.pack("<I", kept) + pack_columns(np.array(columns), total))


@pytest.mark.parametrize(
    ("kept", "columns", "message"),
    [
        (2, [0, 1, 2, 9], "a row does not keep 2 entries"),
        (2, [0, 8, 9, 10], "a row does not keep 2 entries"),
        (1, [8, 9], "a row does not keep 1 entries"),
        (1, [0, 1], "a row does not keep 1 entries"),
        (9, [], "keeps 9 entries of 8"),
        (2**32 - 1, [], "keeps 4294967295 entries of 8"),
    ],
)
def test_positions_that_are_refused(
    kept: int, columns: list[int], message: str
) -> None:
    with pytest.raises(PayloadError, match=message):
        unpack_entries(entries(kept, columns, 16), 2, 8)


def test_golden_positions() -> None:
    assert pack_entries(np.array([[1, 3], [0, 3]]), 4).hex() == "020000009a"
    assert pack_entries(None, 4).hex() == "04000000"
    columns, rest = unpack_entries(memoryview(bytes.fromhex("020000009a")), 2, 4)
    assert columns is not None
    assert columns.tolist() == [[1, 3], [0, 3]]
    assert bytes(rest) == b""
