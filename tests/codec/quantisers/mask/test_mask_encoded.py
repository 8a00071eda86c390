"""Mask-encoded sparsification: entries that are sent, and thirds for the others."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec import BudgetError, MaskEncoded, PayloadError, cut_codec
from flwr_splitfc.codec.quantisers.mask.header import (
    MASK_TOP,
    mask_bytes,
    pack_mask,
    unpack_mask,
)

EXTREMES = {
    "zeros": torch.zeros(5, 12),
    "minus zero": torch.full((2, 3), -0.0),
    "one value": torch.full((5, 12), -3.7),
    "both signs": torch.tensor([[2.0, -2.0, 2.0] * 8]),
    "huge": torch.tensor([[1e38, -1e38, 3e37, 9.9e37] * 9]),
    "subnormal": torch.tensor([[1e-45, -3e-45, 1e-40, 0.0] * 6]),
    "mixed": torch.tensor([[1e38, 1e-45, 0.0, -1.0] * 6]),
}
INPUTS = {
    "normal": lambda rows, columns: torch.randn(rows, columns),
    "after relu": lambda rows, columns: torch.randn(rows, columns).relu(),
    "cauchy": lambda rows, columns: torch.empty(rows, columns).cauchy_(),
    "uniform": lambda rows, columns: torch.rand(rows, columns) - 0.5,
    "five values": lambda rows, columns: (
        torch.randint(-2, 3, (rows, columns)) + torch.eye(rows, columns) * 4
    ),
}


def encoded(matrix: torch.Tensor, budget_bytes: int) -> tuple[bytes, torch.Tensor, int]:
    """Payload, decoded matrix, and how many entries were sent."""
    payload = MaskEncoded().encode(matrix, budget_bytes)
    return (
        payload,
        MaskEncoded().decode(memoryview(payload), *matrix.shape),
        struct.unpack_from("<I", payload)[0],
    )


def by_hand(matrix: torch.Tensor, sent: int) -> torch.Tensor:
    """The paper's definition, with a sign; of equal magnitudes, positive ones come first."""
    flat = matrix.flatten().double()
    order = torch.from_numpy(np.lexsort((flat < 0, -flat.abs())))
    least = float(flat[order[sent - 1]].abs())
    codes = torch.round(3 * flat.abs() / least).clamp(0, 2)
    values = flat.sign() * codes * least / 3
    values[order[:sent]] = flat[order[:sent]]
    return values.view(matrix.shape).float()


@pytest.mark.parametrize("name", ["normal", "after relu", "cauchy", "uniform"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 30), (16, 20), (64, 100)])
def test_it_is_the_mask_made_by_hand(name: str, rows: int, columns: int) -> None:
    torch.manual_seed(rows)
    # so that no entry is rounded across a bound
    matrix = INPUTS[name](rows, columns).half().float()
    for bits in (3.0, 5.0, 40.0):
        budget_bytes = int(rows * columns * bits / 8) + 40
        payload, decoded, sent = encoded(matrix, budget_bytes)
        assert len(payload) <= budget_bytes
        torch.testing.assert_close(
            decoded,
            by_hand(matrix, sent),
            rtol=1e-6,
            atol=2e-7 * float(matrix.abs().max()),
        )


def test_a_mask_by_hand() -> None:
    matrix = torch.tensor([[9.0, 6.0, 3.0, 1.0, -6.5, 0.0, 12.0, -2.0]])
    payload, decoded, sent = encoded(matrix, 44)
    assert len(payload) == 44
    assert sent == 2  # 9 and 12, so a third is 3
    assert decoded.tolist() == [[9.0, 6.0, 3.0, 0.0, -6.0, 0.0, 12.0, -3.0]]


def test_as_many_as_fit_are_sent() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(64, 288)
    sizes, errors = [], []
    for bits in (2.4, 3.0, 4.0, 6.0, 10.0, 17.0):
        payload, decoded, sent = encoded(matrix, int(64 * 288 * bits / 8))
        assert 64 * 288 * bits / 8 - len(payload) < 30 or sent == matrix.numel()
        sizes.append(sent)
        errors.append(float((decoded - matrix).norm() / matrix.norm()))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.3
    assert errors[-1] < 1e-3


def test_no_bits_for_symbols_that_do_not_occur() -> None:
    torch.manual_seed(0)
    features = torch.randn(64, 288).relu()
    payload, _, sent = encoded(features, MaskEncoded().smallest_bytes(64, 288))
    mask_bits = 8 * (len(payload) - mask_bytes(sent)) / features.numel()
    assert sent > 0.045 * features.numel()  # 0.0496 to 0.0506 over twenty seeds
    assert mask_bits < 1.7  # the paper's two


@given(
    name=st.sampled_from(sorted(INPUTS)),
    rows=st.integers(1, 20),
    columns=st.integers(1, 30),
    extra=st.integers(0, 900),
)
@settings(max_examples=150, deadline=None)
def test_budget_is_kept(name: str, rows: int, columns: int, extra: int) -> None:
    matrix = INPUTS[name](rows, columns)
    budget_bytes = MaskEncoded().smallest_bytes(rows, columns) + extra
    payload, decoded, sent = encoded(matrix, budget_bytes)
    assert len(payload) <= budget_bytes
    assert 1 <= sent <= matrix.numel()
    assert decoded.shape == matrix.shape
    largest = float(matrix.abs().max())
    assert float((decoded - matrix).abs().max()) <= largest / 3 * 1.01 + 1e-30


def test_the_longest_masks_fit_their_bound() -> None:
    for rows, columns in [(1, 1), (2, 3), (50, 41), (256, 1152)]:
        symbols = (np.arange(rows * columns) % 5).astype(np.uint8)
        symbols[0] = MASK_TOP
        for order in (symbols, np.sort(symbols), symbols[::-1]):
            size = len(pack_mask(order, np.ones(1, np.float16), 1.0))
            assert (
                0
                <= MaskEncoded().smallest_bytes(rows, columns) - size
                < 20 + rows * columns // 2000
            )


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(name: str) -> None:
    matrix = EXTREMES[name]
    _, decoded, _ = encoded(matrix, 2000)
    torch.testing.assert_close(
        decoded, matrix, rtol=1e-3, atol=float(matrix.abs().max()) * 1e-7
    )
    _, rough, _ = encoded(matrix, 0)
    assert bool(torch.isfinite(rough).all())


def test_no_entries() -> None:
    assert MaskEncoded().encode(torch.zeros(3, 0), 0) == b""
    assert MaskEncoded().smallest_bytes(3, 0) == 0
    assert MaskEncoded().decode(memoryview(b""), 3, 0).shape == (3, 0)
    with pytest.raises(PayloadError, match="payload of no entry has 1 bytes"):
        MaskEncoded().decode(memoryview(b"\0"), 3, 0)


def test_budgets_that_it_cannot_meet_are_named() -> None:
    features = torch.randn(64, 288)
    cut = cut_codec("mask-encoded")
    up, down = cut.smallest_bits(64, 288)
    assert 2.3 < up < 2.4
    assert down == 16.0
    message = rf"uplink_bits=0.2 .* works is {up}; downlink_bits=0.4 .* works is 16.0"
    with pytest.raises(BudgetError, match=message):
        cut.check_budget(64, 288)
    array, link = cut.encode_features(features[:5], full_rows=64)
    down_array = cut.encode_gradient(features[:5], link, full_rows=64)
    assert len(array.data) <= MaskEncoded().smallest_bytes(5, 288)
    assert len(down_array.data) == 2 * 5 * 288


def test_gradient_goes_as_float16() -> None:
    cut = cut_codec("mask-encoded", uplink_bits=3, downlink_bits=16)
    features, gradient = torch.randn(2, 32, 40)
    array, link = cut.encode_features(features)
    _, server_link = cut.decode_features(array, expect=(32, 40))
    back = cut.decode_gradient(cut.encode_gradient(gradient, server_link), link)
    assert torch.equal(back, gradient.half().float())


def masked(
    sent: int = 1,
    scale: float = 1.0,
    sizes: tuple[int, ...] = (2**24 - 5, 1, 1, 1, 1, 1),
) -> memoryview:
    symbols = np.array([0, 0, 0, 5], np.uint8)
    data = pack_mask(symbols, np.ones(1, np.float16), 1.0)
    return memoryview(struct.pack("<If6I", sent, scale, *sizes) + data[32:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sent": 0}, "0 of 4 entries are sent"),
        ({"sent": 5}, "5 of 4 entries"),
        ({"sizes": (2**24 - 5, 1, 1, 1, 1, 0)}, "sizes"),
        ({"sizes": (2**24 - 5, 2, 1, 1, 1, 1)}, "sizes"),
        ({"sizes": (2**24 - 4, 1, 1, 1, 1, 0)}, "none of them 0"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 3e38}, "above 1e38"),
        ({}, "entries are marked; 1 were sent|goes on|not range-coded"),
    ],
)
def test_malformed_masks_are_named(fields: dict[str, float], message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        unpack_mask(masked(**fields), 4)  # type: ignore[arg-type]


def test_golden_mask() -> None:
    data = pack_mask(np.array([0, 5, 1, 0], np.uint8), np.array([1.5], np.float16), 0.5)
    sizes = [8388606, 4194303, 1, 1, 1, 4194303]
    sizes[0] += 2**24 - sum(sizes)
    assert data[:34] == struct.pack("<If6Ie", 1, 0.5, *sizes, 1.5)
    symbols, values = unpack_mask(memoryview(data), 4)
    assert symbols.tolist() == [0, 5, 1, 0]
    assert values.tolist() == [0.75]
