"""The header of a feature-quantised matrix, with golden bytes."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.quantisers.feature.header import (
    QuantHeader,
    Upgrades,
    pack_quant_header,
    quant_header_bytes,
    unpack_quant_header,
)

HEADER = QuantHeader(np.array([1]), -1.0, 1.0, 0.5, Upgrades(1), 2.0, 3.0, 4)
GOLDEN_HEADER = bytes.fromhex(
    "01000000"  # one two-stage column
    "000080bf0000803f0000003f010000000000"  # endpoints, multiplier, upgrades
    "02"  # the set of that column
    "00000040000040400300"  # means
)


def test_golden_quantiser_header() -> None:
    assert pack_quant_header(HEADER, 3) == GOLDEN_HEADER
    assert len(GOLDEN_HEADER) == quant_header_bytes(1, 3)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, "04000000", "4 two-stage columns of 3"),
        (4, "0000c07f", "endpoint interval is nan"),
        (4, "00000040", "endpoint interval is 2.0 to 1.0"),
        (8, "ffff7f7f", "endpoint interval"),
        (12, "00000000", "multiplier is 0.0"),
        (12, "0000807f", "multiplier is inf"),
        (20, "01", "0 upgrades after 1 skipped"),
        (22, "06", "column set is not 1 increasing columns below 3"),
        (22, "0a", "column set"),
        (23, "00008040", "mean interval is 4.0 to 3.0"),
        (31, "0000", "1 mean levels from 2.0 to 3.0"),
    ],
)
def test_malformed_headers_are_named(offset: int, value: str, message: str) -> None:
    data = bytearray(pack_quant_header(HEADER, 3))
    data[offset : offset + len(value) // 2] = bytes.fromhex(value)
    with pytest.raises(PayloadError, match=message):
        unpack_quant_header(memoryview(data), 3)


def test_truncated_headers_are_named() -> None:
    data = pack_quant_header(HEADER, 3)
    for size in range(len(data)):
        with pytest.raises(PayloadError, match="ends early"):
            unpack_quant_header(memoryview(data[:size]), 3)
