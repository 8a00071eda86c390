"""The bytes of a mask and of the entries that are sent.

The mask has a symbol for each entry, range-coded with sizes that are proportional to
how often each symbol occurs: a symbol of size s takes ``24 - log2 s`` bits. See
docs/wire-format.md, section 13.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints, Symbols
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
"""The symbol of an entry that is sent.

0, 1 and 2 are multiples of a third of the least of them; 3 and 4 are minus 1 and 2.
"""

_SYMBOLS = MASK_TOP + 1

_FIELDS = f"If{_SYMBOLS}I"
"""How many entries are sent, their scale, and the size of each symbol."""

_HALF_BYTES = 2

_WHOLE: int = 2**SYMBOL_PRECISION_BITS


def mask_bytes(sent: int) -> int:
    """Return the bytes before the symbols with so many entries sent."""
    return struct.calcsize("<" + _FIELDS) + _HALF_BYTES * sent


def pack_mask(
    symbols: NDArray[np.uint8], sent: NDArray[np.float16], scale: float
) -> bytes:
    """Write at least one symbol, and the entries that are sent in units of `scale`."""
    sizes = _sizes(symbols)
    fields = struct.pack("<" + _FIELDS, len(sent), scale, *sizes.tolist())
    entries = pack_floats(sent, "<f2")
    stream = pack_symbols([(symbols.astype(np.int32), sized_model(sizes))])
    return fields + entries + stream


def unpack_mask(data: memoryview, entries: int) -> tuple[Symbols, Tensor]:
    """Read the mask of so many entries, at least one, and the entries that are sent.

    Raises
    ------
    PayloadError
        If the bytes are no mask of so many entries.
    """
    (sent, scale, *sizes), rest = take(data, _FIELDS)
    if not 1 <= sent <= entries:
        raise PayloadError(f"{sent} of {entries} entries are sent")
    if min(sizes) < 1 or sum(sizes) != _WHOLE:
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


def _sizes(symbols: NDArray[np.uint8]) -> Ints:
    """Share 2^24 out by how often each symbol occurs, with at least 1 for each."""
    counts = np.bincount(symbols, minlength=_SYMBOLS)
    shares = counts * (_WHOLE - _SYMBOLS) // len(symbols)
    sizes: Ints = shares + 1
    # what rounding has left over makes the most frequent symbol cheaper
    sizes[np.argmax(counts)] += _WHOLE - sizes.sum()
    return sizes
