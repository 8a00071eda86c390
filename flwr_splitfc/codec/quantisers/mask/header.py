"""The bytes of a mask and of the entries that are sent."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.arrays import Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.format.floats import pack_floats, unpack_scaled
from flwr_splitfc.codec.format.symbols import (
    SYMBOL_PRECISION_BITS,
    SymbolReader,
    pack_symbols,
    sized_model,
)

MASK_TOP = 5
"""The symbol of an entry that is sent; 0, 1 and 2 are thirds of the least of them, 3 and 4 are minus 1 and 2."""


_MASK = f"If{MASK_TOP + 1}I"


def mask_bytes(sent: int) -> int:
    """Bytes before the symbols with so many entries sent."""
    return struct.calcsize("<" + _MASK) + 2 * sent


def pack_mask(
    symbols: NDArray[np.uint8], sent: NDArray[np.float16], scale: float
) -> bytes:
    """Write at least one symbol, and the entries that are sent in units of `scale`."""
    counts = np.bincount(symbols, minlength=MASK_TOP + 1)
    whole = 2**SYMBOL_PRECISION_BITS
    sizes = 1 + counts * (whole - len(counts)) // len(symbols)
    sizes[np.argmax(counts)] += whole - sizes.sum()
    header = struct.pack("<" + _MASK, len(sent), scale, *sizes.tolist())
    return (
        header
        + pack_floats(sent, "<f2")
        + pack_symbols([(symbols.astype(np.int32), sized_model(sizes))])
    )


def unpack_mask(data: memoryview, entries: int) -> tuple[Symbols, Tensor]:
    """Read the mask of so many entries, at least one, and the entries that are sent."""
    (sent, scale, *sizes), rest = take(data, _MASK)
    if not 1 <= sent <= entries:
        raise PayloadError(f"{sent} of {entries} entries are sent")
    if min(sizes) < 1 or sum(sizes) != 2**SYMBOL_PRECISION_BITS:
        raise PayloadError(
            f"symbols have sizes {sizes}; 2^24 in all was wanted, and none of them 0"
        )
    values, stream = unpack_scaled(rest, 1, sent, scale)
    reader = SymbolReader(stream)
    symbols = reader.read(entries, sized_model(np.array(sizes)))
    reader.close()
    marked = np.count_nonzero(symbols == MASK_TOP)
    if marked != sent:
        raise PayloadError(f"{marked} entries are marked; {sent} were sent")
    return symbols, values.view(-1)
