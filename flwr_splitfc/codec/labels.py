"""Labels in as few bits as their range, or how often each occurs, allows.

Integers from ``m`` to ``M`` are range-coded less ``m``: at ``log2(M - m + 1)`` bits
each, or by how often each value occurs (`format.counted_integers`), whichever is
shorter with all that precedes it (docs/wire-format.md, section 7). Their arithmetic is
that of 64 bits without a sign, which wraps around: ``m + (label - m)`` is the label
whatever the span. Floats that are whole numbers, as the 0.0 and 1.0 of several classes
for a sample, go alike.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.arrays import Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.counted_integers import (
    MOST_COUNTED,
    least_counted_bytes,
    pack_counted,
    unpack_counted,
)
from flwr_splitfc.codec.format.fields import allocated_entries, view
from flwr_splitfc.codec.format.floats import pack_floats
from flwr_splitfc.codec.format.label_header import (
    LABEL_DTYPES,
    LabelHeader,
    pack_label_header,
    unpack_label_header,
)
from flwr_splitfc.codec.format.symbols import (
    ExactSymbolReader,
    SymbolReader,
    pack_words,
)

Entries: TypeAlias = NDArray[np.generic]
"""Labels, flat, of any type."""

_MOST_RANGE_LEVELS = 2**16
_FEW = 64
_WHOLE_FLOATS = ("float16", "float32", "float64")  # numpy has no bfloat16


def pack_labels(labels: Tensor) -> bytes:
    """Write labels of any shape so that type, shape and values come back exactly.

    Integers are range-coded, over the span of their values or by how often each
    occurs, or sent less the minimum in four or eight bytes if they span more than 2^16.
    Floats that are whole numbers are range-coded, too, where that is shorter; others go
    as they are.

    Raises
    ------
    ValueError
        If the type is not one of bool, uint8, int8 to int64, float16 to float64 and
        bfloat16.

    Examples
    --------
    >>> len(pack_labels(torch.arange(10).repeat(25)))
    114
    >>> len(pack_labels(torch.arange(250.0) % 2))
    42
    >>> unpack_labels(pack_labels(torch.tensor([3, 1, 2])), max_entries=8)
    tensor([3, 1, 2])
    """
    dtype = str(labels.dtype).removeprefix("torch.")
    if dtype not in LABEL_DTYPES:
        known = ", ".join(LABEL_DTYPES)
        raise ValueError(f"labels must be one of {known}, got {dtype}")
    shape = tuple(labels.shape)
    entries = _to_numpy(labels.detach().cpu()).reshape(-1)
    if entries.size > 0 and not labels.is_floating_point():
        return _pack_integers(dtype, shape, entries)
    header = pack_label_header(LabelHeader(dtype, shape))
    payload = header + pack_floats(entries, _raw_dtype(dtype))
    if not _are_whole(entries, dtype):
        return payload
    integers = entries.astype(np.int64)
    return min(payload, _pack_integers(dtype, shape, integers), key=len)


def _are_whole(entries: Entries, dtype: str) -> bool:
    """Return whether floats are what symbols give back: no -0.0, and no wide span."""
    if entries.size == 0 or dtype not in _WHOLE_FLOATS:
        return False
    # of measured values the first few tell
    first = entries[:_FEW]
    if not np.array_equal(first, np.rint(first)):
        return False
    least, greatest = _limits(dtype)
    smallest, largest = float(entries.min()), float(entries.max())
    # NaN compares with nothing
    if not (least <= smallest and largest <= greatest):
        return False
    if largest - smallest >= _MOST_RANGE_LEVELS:
        return False
    is_whole = entries == np.rint(entries)
    is_negative_zero = np.signbit(entries) & (entries == 0)
    return bool((is_whole & ~is_negative_zero).all())


def _pack_integers(dtype: str, shape: tuple[int, ...], entries: Entries) -> bytes:
    offset = int(entries.min())
    greatest = int(entries.max())
    levels = greatest - offset + 1
    signed = entries.astype(np.int64, copy=False)
    if levels > _MOST_RANGE_LEVELS:
        coding = "<u4" if levels <= 2**32 else "<u8"
        header = LabelHeader(dtype, shape, coding, offset)
        above = signed.view(np.uint64) - _wrapped(offset)
        return pack_label_header(header) + above.astype(coding).tobytes()
    symbols = (signed - offset).astype(np.int32)
    header = LabelHeader(dtype, shape, "symbols", offset, levels)
    even = _pack_even(symbols, levels)
    payload = pack_label_header(header) + even
    if len(symbols) > MOST_COUNTED:
        return payload
    counts = np.bincount(symbols)
    # where no class is much more frequent than others, it is not even tried
    if least_counted_bytes(counts) >= len(even):
        return payload
    values, counted = pack_counted(symbols, counts)
    header = replace(header, values=values)
    return min(payload, pack_label_header(header) + counted, key=len)


def _pack_even(symbols: Symbols, levels: int) -> bytes:
    # A symbol of one level says nothing, and the range coder takes none.
    if levels == 1:
        return b""
    return pack_words([(symbols, levels)])


def unpack_labels(data: bytes, max_entries: int) -> Tensor:
    """Read what `pack_labels` wrote.

    Parameters
    ----------
    data : bytes
        From the wire; nothing in it is trusted.
    max_entries : int
        Most entries that are allocated; a dimension of size 0 counts as one of size 1.

    Raises
    ------
    PayloadError
        If the bytes are no labels, or more than `max_entries`.
    """
    header, rest = unpack_label_header(view(data))
    _check_header(header, max_entries)
    entries = _unpack_entries(rest, header)
    labels = _to_torch(entries, header.dtype)
    return labels.reshape(header.shape)


def labels_size(data: bytes) -> int:
    """Return the entries that `unpack_labels` would allocate; 0 if it would refuse."""
    try:
        header, _ = unpack_label_header(view(data))
    except PayloadError:
        return 0
    return allocated_entries(header.shape)


def _unpack_entries(data: memoryview, header: LabelHeader) -> Entries:
    count = prod(header.shape)
    if header.coding == "raw":
        entries = _read_entries(data, count, _raw_dtype(header.dtype))
        # The payload's own bytes cannot be written to, as a tensor can.
        return entries.copy()
    if header.coding == "range":
        above = _read_range(data, count, header.levels)
    elif header.coding == "symbols":
        above = _read_symbols(data, count, header)
    else:
        above = _read_entries(data, count, header.coding)
    return _from_offset(above, header)


def _check_header(header: LabelHeader, max_entries: int) -> None:
    if allocated_entries(header.shape) > max_entries:
        raise PayloadError(
            f"labels have shape {header.shape}; "
            f"at most {max_entries} entries were wanted"
        )
    count = prod(header.shape)
    codings = _codings(header.dtype) if count > 0 else ("raw",)
    if header.coding not in codings:
        raise PayloadError(
            f"{count} labels of {header.dtype} are coded as {header.coding}"
        )


def _codings(dtype: str) -> tuple[str, ...]:
    if dtype in _WHOLE_FLOATS:
        return "raw", "symbols"
    if dtype == "bfloat16":
        return ("raw",)
    return "range", "<u4", "<u8", "symbols"


def _read_entries(data: memoryview, count: int, dtype: str) -> Entries:
    size = count * np.dtype(dtype).itemsize
    if len(data) != size:
        raise PayloadError(
            f"labels have {len(data)} bytes; {count} entries of {dtype} take {size}"
        )
    return np.frombuffer(data, dtype)


def _read_range(data: memoryview, count: int, levels: int) -> Entries:
    """Read even symbols as protocol 2 wrote them."""
    _check_levels(levels)
    return _read_even(SymbolReader(data), count, levels)


def _read_symbols(data: memoryview, count: int, header: LabelHeader) -> Entries:
    _check_levels(header.levels)
    if header.values == 0:
        return _read_even(ExactSymbolReader(data), count, header.levels)
    return unpack_counted(data, count, header.levels, header.values)


def _read_even(reader: SymbolReader, count: int, levels: int) -> Entries:
    symbols = reader.read(count, levels) if levels > 1 else np.zeros(count, np.int32)
    reader.close()
    return symbols


def _check_levels(levels: int) -> None:
    if not 1 <= levels <= _MOST_RANGE_LEVELS:
        raise PayloadError(
            f"labels have {levels} levels; 1 to {_MOST_RANGE_LEVELS} were wanted"
        )


def _from_offset(above: Entries, header: LabelHeader) -> Entries:
    """Add the header's offset to entries, and check that the type holds the sums."""
    least, greatest = _limits(header.dtype)
    largest = header.offset + header.levels - 1
    # symbols are below their levels, and mostly need no look
    if header.levels == 0 or largest > greatest:
        largest = header.offset + int(above.max())
    if header.offset < least or largest > greatest:
        raise PayloadError(
            f"labels from {header.offset} to {largest} are not {header.dtype}"
        )
    # sums of 64 bits wrap around, which is silent in an array
    signed = above.astype(np.int64)
    if header.offset != 0:
        signed += header.offset
    return signed.astype(header.dtype, copy=False)


@cache
def _limits(dtype: str) -> tuple[int, int]:
    """Return the integers between which all are numbers of the type."""
    if dtype == "bool":
        return 0, 1
    if dtype in _WHOLE_FLOATS:
        most = 2 ** (np.finfo(dtype).nmant + 1)
        return -most, most
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _wrapped(offset: int) -> np.uint64:
    """Return an int64 as 64 bits without a sign."""
    return np.uint64(offset % 2**64)


def _raw_dtype(dtype: str) -> str:
    """Return the numpy type of raw entries, as they are written.

    numpy has no bfloat16, so its entries are handled as the integers of their bits.
    """
    if dtype == "bfloat16":
        return "<i2"
    return np.dtype(dtype).newbyteorder("<").str


def _to_numpy(labels: Tensor) -> Entries:
    if labels.dtype == torch.bfloat16:
        labels = labels.view(torch.int16)
    return labels.numpy()


def _to_torch(entries: Entries, dtype: str) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(entries))
    if dtype == "bfloat16":
        return tensor.view(torch.bfloat16)
    return tensor
