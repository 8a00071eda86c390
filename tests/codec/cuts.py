"""Codecs for tests of all of them."""

from __future__ import annotations

from typing import Any

from flwr_splitfc.codec import CutCodec, cut_codec


def affordable_cut(
    name: str,
    rows: int,
    columns: int,
    uplink_bits: float = 0.2,
    downlink_bits: float = 0.4,
    **settings: Any,
) -> CutCodec:
    """With these budgets, or the smallest that work where they do not."""
    least_up, least_down = cut_codec(name, **settings).smallest_bits(rows, columns)
    budgets = {
        "uplink_bits": max(uplink_bits, least_up),
        "downlink_bits": max(downlink_bits, least_down),
    }
    return cut_codec(name, **budgets, **settings)
