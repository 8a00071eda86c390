"""Mask-encoded sparsification (Zhou et al., ECAI 2024, 2408.13787).

With t the least magnitude that is sent, every other entry is decoded to the nearest of
``-2t/3, -t/3, 0, t/3, 2t/3``. `magnitude_counts` computes what a threshold costs,
`choice` chooses one. See docs/wire-format.md, section 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.symbols import pack_within, stream_bytes
from flwr_splitfc.codec.quantisers.float16 import Float16
from flwr_splitfc.codec.quantisers.mask.choice import choose
from flwr_splitfc.codec.quantisers.mask.header import (
    MASK_TOP,
    mask_bytes,
    pack_mask,
    unpack_mask,
)
from flwr_splitfc.codec.quantisers.mask.magnitude_counts import MagnitudeCounts
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import check_entries, half_scale, to_half

_THIRDS = [0, 1, 2, -1, -2, 0]
"""What each symbol stands for; the last one's entries are put in afterwards."""


@dataclass(frozen=True)
class MaskEncoded(Quantiser):
    """Sends the largest entries, and a mask of about how large the others are (MS).

    The ``k`` entries of largest magnitude in the whole matrix are sent as float16, in
    units of a power of two. The mask marks them. For each of the others it holds the
    nearest of 0, 1 and 2 thirds of the smallest magnitude that is sent, with its sign.
    (Signs are a reconstruction: the paper is about features after a ReLU.) ``k`` is the
    largest number that the budget pays for.

    The paper sends values as float32 and two bits an entry for the mask. Here the mask
    is range-coded by how often each symbol occurs, which takes fewer bits. The paper
    does not compress the gradient; here it goes as float16. So a downlink budget must
    be at least 16 bits an entry, and an uplink budget must pay for the longest mask,
    log2 5 bits an entry.

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
        # + 0 makes -0, whose bits are the largest, 0
        scaled = to_half(matrix / scale, scale).add_(0.0)
        halves = scaled.cpu().numpy().ravel()
        histogram = MagnitudeCounts.of(halves)

        def pack(target_bytes: int) -> tuple[bytes, bool]:
            choice = choose(histogram, target_bytes)
            symbols = choice.symbols(halves)
            data = pack_mask(symbols, halves[symbols == MASK_TOP], scale)
            return data, choice.is_smallest

        return pack_within(pack, budget_bytes)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        entries = rows * columns
        if entries == 0:
            if len(data):
                raise PayloadError(f"payload of no entry has {len(data)} bytes")
            return torch.zeros(rows, columns, dtype=torch.float32, device="cpu")
        mask, sent = unpack_mask(data, entries)
        symbols = torch.from_numpy(mask)
        third = sent.abs().min() / 3
        levels = torch.tensor(_THIRDS, dtype=torch.float32, device="cpu") * third
        values = levels.index_select(0, symbols)
        values.masked_scatter_(symbols == MASK_TOP, sent)
        return values.view(rows, columns)

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of the longest mask, and of a single entry.

        All other entries have five symbols that are equally frequent.
        """
        entries = rows * columns
        if entries == 0:
            return 0
        other_bits = (entries - 1) * log2(5)
        single_bits = log2(entries)
        # N - 1 of N entries take (N - 1) log2(N / (N - 1)) < log2 e < 1.5 bits more
        bits = other_bits + single_bits + 1.5
        return mask_bytes(1) + stream_bytes(entries, bits / entries)
