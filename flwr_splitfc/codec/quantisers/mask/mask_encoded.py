"""Mask-encoded sparsification (Zhou et al., ECAI 2024, 2408.13787)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from math import log2

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.symbols import stream_bytes
from flwr_splitfc.codec.quantisers.float16 import Float16
from flwr_splitfc.codec.quantisers.mask.header import (
    MASK_TOP,
    mask_bytes,
    pack_mask,
    unpack_mask,
)
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import check_entries, half_scale, to_half

_MAGNITUDES = 0x7C00
"""Finite float16 magnitudes; their bits are in their order."""

_SIGN = 0x8000


@dataclass(frozen=True)
class MaskEncoded(Quantiser):
    """Sends the largest entries and a mask that says about how large the others are (MS).

    The ``k`` entries of largest magnitude in the whole matrix are sent as float16, in
    units of a power of two. The mask marks them, and holds for each of the others the
    nearest of 0, 1 and 2 thirds of the smallest magnitude that is sent, with its sign
    (signs are a reconstruction: the paper is about features after a ReLU). ``k`` is the
    largest that the budget pays for.

    The paper sends values as float32 and two bits an entry for the mask. Here the mask
    is range-coded by how often each symbol occurs, which takes fewer. The gradient is
    not compressed in the paper; here it goes as float16. So a downlink budget below 16
    bits an entry is impossible, and an uplink budget that does not pay for the longest
    mask, log2 5 bits an entry.

    Examples
    --------
    >>> matrix = torch.tensor([[9.0, 6.0, 3.0, 1.0, -6.5, 0.0, 12.0, -2.0]])
    >>> payload = MaskEncoded().encode(matrix, budget_bytes=44)
    >>> MaskEncoded().decode(memoryview(payload), 1, 8)
    tensor([[ 9.,  6.,  3.,  0., -6.,  0., 12., -3.]])
    """

    def for_gradient(self) -> Quantiser:
        return Float16()

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        check_entries(matrix)
        if matrix.numel() == 0:
            return b""
        scale = half_scale(matrix)
        # no -0, whose bits are the largest
        halves = to_half(matrix / scale, scale).add_(0.0).cpu().numpy().ravel()
        mask = _Mask.of(halves)
        target_bytes = budget_bytes
        while True:
            threshold, ties = mask.choice(target_bytes)
            symbols = mask.symbols(halves, threshold, ties)
            data = pack_mask(symbols, halves[symbols == MASK_TOP], scale)
            if len(data) <= budget_bytes or mask.is_smallest(target_bytes):
                return data
            target_bytes -= max(4, len(data) - budget_bytes)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        if rows * columns == 0:
            if len(data):
                raise PayloadError(f"payload of no entry has {len(data)} bytes")
            return torch.zeros(rows, columns)
        mask, top = unpack_mask(data, rows * columns)
        symbols = torch.from_numpy(mask)
        third = top.abs().min() / 3
        levels = torch.tensor([0, 1, 2, -1, -2, 0]) * third
        return (
            levels.index_select(0, symbols)
            .masked_scatter_(symbols == MASK_TOP, top)
            .view(rows, columns)
        )

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """One entry as float16, and all others by five symbols that are equally frequent."""
        entries = rows * columns
        if entries == 0:
            return 0
        bits = (entries - 1) * log2(5) + log2(entries) + 1.5
        return mask_bytes(1) + stream_bytes(entries, bits / entries)


@dataclass(frozen=True, eq=False)
class _Mask:
    """How many entries are below each float16 magnitude, by sign, ``(2, magnitudes + 1)``."""

    below: Ints

    @classmethod
    def of(cls, halves: NDArray[np.float16]) -> _Mask:
        counts = np.bincount(halves.view(np.uint16), minlength=2 * _SIGN).reshape(
            2, _SIGN
        )[:, :_MAGNITUDES]
        return cls(np.pad(np.cumsum(counts, 1), ((0, 0), (1, 0))))

    @cached_property
    def thresholds(self) -> Ints:
        """Magnitudes that occur and may be the least one sent: not 0, unless there is nothing else."""
        present = np.flatnonzero(np.diff(self.below.sum(0)))
        return present[present > 0] if present[-1] > 0 else present

    @cached_property
    def least_bytes(self) -> Doubles:
        """Payload with each of the thresholds and a single entry there."""
        return self.payload_bytes(self.thresholds, np.ones_like(self.thresholds))

    def choice(self, budget_bytes: int) -> tuple[int, int]:
        """The threshold, and how many of the entries there are sent: as many as fit, or what is shortest."""
        if self.is_smallest(budget_bytes):
            return int(self.thresholds[np.argmin(self.least_bytes)]), 1
        threshold = int(self.thresholds[np.argmax(self.least_bytes <= budget_bytes)])
        ties = int(np.diff(self.below.sum(0))[threshold])

        def too_many(sent: int) -> bool:
            return bool(
                self.payload_bytes(np.array([threshold]), np.array([sent]))[0]
                > budget_bytes
            )

        return threshold, bisect_left(range(1, ties + 1), True, key=too_many)

    def is_smallest(self, budget_bytes: int) -> bool:
        """Whether no payload is that short."""
        return bool(self.least_bytes.min() > budget_bytes)

    def payload_bytes(self, thresholds: Ints, ties: Ints) -> Doubles:
        """Enough for the payloads, but in rare cases."""
        entries = int(self.below[:, -1].sum())
        counts = self.counts(thresholds, ties)
        bits = (counts * np.log2(entries / np.maximum(counts, 1))).sum(0)
        return np.array(
            [
                mask_bytes(k) + stream_bytes(entries, b / entries)
                for k, b in zip(counts[-1].tolist(), bits.tolist(), strict=True)
            ]
        )

    def counts(self, thresholds: Ints, ties: Ints) -> Ints:
        """How often each symbol occurs, (6, thresholds)."""
        ones, twos = _bounds(thresholds)
        positive, negative = self.below
        sent = np.minimum(ties, positive[thresholds + 1] - positive[thresholds])
        small = [
            [own[twos] - own[ones], own[thresholds + 1] - own[twos] - gone]
            for own, gone in ((positive, sent), (negative, ties - sent))
        ]
        entries = self.below[:, -1].sum()
        top = entries - self.below[:, thresholds + 1].sum(0) + ties
        return np.stack([self.below[:, ones].sum(0), *small[0], *small[1], top])

    def symbols(
        self, halves: NDArray[np.float16], threshold: int, ties: int
    ) -> NDArray[np.uint8]:
        """The mask; of the entries at the threshold, positive ones are sent before negative ones, in their order."""
        bits = halves.view(np.uint16)
        one, two = (int(bound[0]) for bound in _bounds(np.array([threshold])))
        table = np.full((2, _SIGN), MASK_TOP, np.uint8)
        table[:, :one] = 0
        table[:, one:two] = [[1], [3]]
        table[:, two : threshold + 1] = [[2], [4]]
        symbols = table.ravel().take(bits)
        at = np.concatenate(
            [np.flatnonzero(bits == threshold + sign) for sign in (0, _SIGN)]
        )
        symbols[at[:ties]] = MASK_TOP
        return symbols


def _bounds(thresholds: Ints) -> tuple[Ints, Ints]:
    """The magnitudes from which on 1 and 2 thirds of the threshold are nearer than less."""
    values = np.arange(_MAGNITUDES, dtype=np.uint16).view(np.float16).astype(np.float64)
    twos = np.searchsorted(values, values[thresholds] / 2)
    return np.minimum(
        np.searchsorted(values, values[thresholds] / 6, side="right"), twos
    ), twos
