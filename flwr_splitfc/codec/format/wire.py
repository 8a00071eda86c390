"""The byte formats; little-endian, and nothing else in the package knows them.

Every function that reads raises `PayloadError` on bytes that no writer makes. The whole
of it, for implementers in other languages, is docs/wire-format.md; here in short:

========================  ==========================================================================
column set, k of n        nothing for k = 0 or k = n; else Elias-Fano (k low parts of l bits, then k high
                          parts in unary) where that is shorter than a bitmap of n bits;
                          zero padded
selection                 u32 K, column set K of D
entry selection           u32 S, column set B S of B D, with S in each row
feature quantiser         u32 M; if M > 0: f32 low, f32 high, f32 multiplier, upgrades (u32 first, u8
                          skipped, u8 more), column set M of K; if M < K: f32 mean low,
                          f32 mean high, u16 mean levels - 1; symbols
even levels               u16 levels - 1, f32 low, f32 high, u8 parameter where the codec has one; symbols by row
int8                      f32 low and then f32 high of each group; u8 entries by row
symbols                   absent without symbols, else u32 number of words and one range-coded stream of
                          so many u32 words to the end; of a feature quantiser:
                          (low, high) endpoints by column, means, entries by row
product quantiser         u32 d, u32 R, u16 L, f32 scale, R L centroids of d f16; symbols if L > 1
mask-encoded              u32 k, f32 scale, 6 x u32 symbol sizes, k f16; symbols
float32, float16          row-major entries
labels                    u8 dtype, u8 ndim, u32 x ndim shape, u8 coding; unless raw: i64 offset; if
                          range-coded: u32 levels; entries
========================  ==========================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from constriction import stream
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.statistics import MAGNITUDE_LIMIT

ENDPOINT_LEVELS = 200
"""Points of the grid for column endpoints, ``Q_ep`` (SplitFC, Sec. V)."""

SYMBOL_PRECISION_BITS = 24
"""The range coder's probabilities are multiples of ``2**-24``."""

MOST_DIMENSIONS = 8
"""Of features, gradients and labels."""

Ints = NDArray[np.int64]
Symbols = NDArray[np.int32]
Floats = NDArray[np.float32]


def view(data: object) -> memoryview:
    """A payload off the wire, to be read piece by piece without copies."""
    if not isinstance(data, bytes):
        raise PayloadError(f"payload is {type(data).__name__}; bytes were wanted")
    return memoryview(data)


def take(data: memoryview, layout: str) -> tuple[tuple[Any, ...], memoryview]:
    """Read the fields of a `struct` layout and return them with the bytes that follow."""
    size = struct.calcsize("<" + layout)
    if len(data) < size:
        raise PayloadError(
            f"payload ends early: {len(data)} bytes left where {size} were wanted"
        )
    return struct.unpack_from("<" + layout, data), data[size:]


# Sets of columns


def _low_bits(count: int, total: int) -> int:
    return (total // count).bit_length() - 1


def _elias_fano_bits(count: int, total: int) -> int:
    low = _low_bits(count, total)
    return count * low + count + ((total - 1) >> low)


def column_set_bytes(count: int, total: int) -> int:
    """Bytes that a set of `count` out of `total` columns takes.

    >>> column_set_bytes(72, 1152), column_set_bytes(576, 1152), column_set_bytes(1152, 1152)
    (54, 144, 0)
    """
    if count in (0, total):
        return 0
    return (min(total, _elias_fano_bits(count, total)) + 7) // 8


def _is_bitmap(count: int, total: int) -> bool:
    return total <= _elias_fano_bits(count, total)


def pack_columns(columns: Ints, total: int) -> bytes:
    """Write a strictly increasing set of columns below `total`; its size is known to the reader."""
    count = len(columns)
    if count in (0, total):
        return b""
    if _is_bitmap(count, total):
        bits = np.zeros(total, np.uint8)
        bits[columns] = 1
    else:
        low = _low_bits(count, total)
        bits = np.zeros(_elias_fano_bits(count, total), np.uint8)
        bits[: count * low] = (columns[:, None] >> np.arange(low) & 1).ravel()
        bits[count * low + (columns >> low) + np.arange(count)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_columns(data: memoryview, count: int, total: int) -> tuple[Ints, memoryview]:
    """Read `count` columns below `total`."""
    if count in (0, total):
        return np.arange(count), data
    size = column_set_bytes(count, total)
    if len(data) < size:
        raise PayloadError(
            f"column set ends early: {len(data)} bytes left where {size} were wanted"
        )
    bits = np.unpackbits(np.frombuffer(data[:size], np.uint8), bitorder="little")
    columns = (
        _bitmap_columns(bits)
        if _is_bitmap(count, total)
        else _elias_fano_columns(bits, count, total)
    )
    if (
        len(columns) != count
        or columns[-1] >= total
        or not bool((np.diff(columns) > 0).all())
    ):
        raise PayloadError(
            f"column set is not {count} increasing columns below {total}"
        )
    return columns, data[size:]


def _bitmap_columns(bits: NDArray[np.uint8]) -> Ints:
    return np.flatnonzero(bits).astype(np.int64)


def _elias_fano_columns(bits: NDArray[np.uint8], count: int, total: int) -> Ints:
    low = _low_bits(count, total)
    if bits[_elias_fano_bits(count, total) :].any():
        raise PayloadError("column set is padded with ones; zeros were wanted")
    low_parts = bits[: count * low].reshape(count, low) @ (1 << np.arange(low))
    places = np.flatnonzero(bits[count * low :])
    if len(places) != count:
        raise PayloadError(f"column set has {len(places)} columns; {count} were wanted")
    return ((places - np.arange(count)) << low | low_parts).astype(np.int64)


# Selection


def pack_selection(columns: Ints | None, width: int) -> bytes:
    """Write which of `width` columns are kept; None is all of them."""
    if columns is None:
        return struct.pack("<I", width)
    return struct.pack("<I", len(columns)) + pack_columns(columns, width)


def unpack_selection(data: memoryview, width: int) -> tuple[Ints | None, memoryview]:
    """Read which of `width` columns are kept, None for all, and return the rest."""
    (kept,), rest = take(data, "I")
    if kept > width:
        raise PayloadError(f"selection keeps {kept} columns of {width}")
    columns, rest = unpack_columns(rest, kept, width)
    return (None if kept == width else columns), rest


def pack_entries(columns: Ints | None, width: int) -> bytes:
    """Write which of `width` columns each row keeps, increasing (B, S); None is all of them."""
    if columns is None:
        return struct.pack("<I", width)
    rows, kept = columns.shape
    flat = (columns + width * np.arange(rows)[:, None]).ravel()
    return struct.pack("<I", kept) + pack_columns(flat, rows * width)


def unpack_entries(
    data: memoryview, rows: int, width: int
) -> tuple[Ints | None, memoryview]:
    """Read which of `width` columns each row keeps, (B, S), None for all, and return the rest."""
    (kept,), rest = take(data, "I")
    if kept > width:
        raise PayloadError(f"selection keeps {kept} entries of {width} in each row")
    if kept == width:
        return None, rest
    flat, rest = unpack_columns(rest, rows * kept, rows * width)
    columns = flat.reshape(rows, kept)
    columns -= width * np.arange(rows)[:, None]
    if columns.size and not 0 <= columns[:, 0].min() <= columns[:, -1].max() < width:
        raise PayloadError(f"a row does not keep {kept} entries")
    return columns, rest


def selection_bytes(fewest: int, most: int, width: int) -> int:
    """Bytes of the longest selection of `fewest` to `most` out of `width` columns.

    A set grows with its count but where its low parts get a bit shorter, past ``width
    >> bits`` columns.
    """
    counts = {most, width - 1, *(width >> bits for bits in range(width.bit_length()))}
    return 4 + max(
        column_set_bytes(count, width) for count in counts if fewest <= count <= most
    )


def rows_bytes(rows: int) -> int:
    """Bytes that are enough for a sample of so many rows."""
    return 4 + selection_bytes(1, rows, rows)


def pack_rows(samples: Ints | None, rows: int, groups: int) -> bytes:
    """Write which of the rows are sent, None for all, and how many channels each has."""
    return struct.pack("<I", groups) + pack_selection(samples, rows)


def unpack_rows(data: memoryview, rows: int) -> tuple[Ints | None, int, memoryview]:
    """Read what `pack_rows` wrote and return the rest."""
    (groups,), rest = take(data, "I")
    samples, rest = unpack_selection(rest, rows)
    if samples is not None and not len(samples):
        raise PayloadError("no row was sent")
    return samples, groups, rest


# Floats


def pack_floats(matrix: NDArray[Any], dtype: str) -> bytes:
    """Write a matrix row by row as ``<f4`` or ``<f2``."""
    return matrix.astype(dtype, copy=False).tobytes()


def unpack_floats(data: memoryview, rows: int, columns: int, dtype: str) -> Tensor:
    """Read a finite (rows, columns) matrix of ``<f4`` or ``<f2`` as float32."""
    size = rows * columns * np.dtype(dtype).itemsize
    if len(data) != size:
        raise PayloadError(
            f"matrix has {len(data)} bytes; {rows} x {columns} {dtype} take {size}"
        )
    native = np.frombuffer(data, dtype).astype(np.dtype(dtype).newbyteorder("="))
    # ten times as fast as numpy from float16
    matrix = torch.from_numpy(native).view(rows, columns).float()
    check_decoded(matrix)
    return matrix


def unpack_scaled(
    data: memoryview, rows: int, columns: int, scale: float
) -> tuple[Tensor, memoryview]:
    """Read (rows, columns) of ``<f2`` in units of `scale` as float32, and return the rest."""
    if not (isfinite(scale) and scale > 0):
        raise PayloadError(f"scale is {scale}; a finite positive number was wanted")
    size = 2 * rows * columns
    if len(data) < size:
        raise PayloadError(
            f"entries end early: {len(data)} bytes left where {size} were wanted"
        )
    matrix = unpack_floats(data[:size], rows, columns, "<f2").mul_(scale)
    check_decoded(matrix)
    return matrix, data[size:]


def check_decoded(matrix: Tensor) -> None:
    """Refuse NaN, infinities and what is too large to be sent."""
    if (
        matrix.numel()
        and not max(-float(matrix.amin()), float(matrix.amax())) <= MAGNITUDE_LIMIT
    ):
        raise PayloadError("matrix holds NaN, inf or a magnitude above 1e38")


# Feature quantiser


class Upgrades(NamedTuple):
    """Which columns get a level more, in `levels.upgrade_order`: the `first`, and `more` after `skipped` others."""

    first: int = 0
    skipped: int = 0
    more: int = 0


NO_UPGRADES = Upgrades()


@dataclass(frozen=True, eq=False)
class QuantHeader:
    """What the reader of a feature-quantised (B, K) matrix knows before the symbols.

    Parameters
    ----------
    two_stage : ndarray
        The ``M`` columns whose entries are sent, int64, increasing.
    low, high : float
        Ends of the endpoint grid.
    multiplier : float
        ``m``: a column that spans n grid steps has levels for ``u = m n^2``.
    upgrades : Upgrades
        Which columns have one level more than that.
    mean_low, mean_high : float
        Ends of the grid for the means of the other columns.
    mean_levels : int
        ``Q_0``, its points.
    """

    two_stage: Ints
    low: float = 0.0
    high: float = 0.0
    multiplier: float = 1.0
    upgrades: Upgrades = NO_UPGRADES
    mean_low: float = 0.0
    mean_high: float = 0.0
    mean_levels: int = 1


_COUNT, _ENTRIES, _MEANS = "I", "fffIBB", "ffH"


def quant_header_bytes(two_stage: int, columns: int) -> int:
    """Bytes before the symbols with `two_stage` out of `columns` columns in two stages."""
    size = struct.calcsize("<" + _COUNT) + column_set_bytes(two_stage, columns)
    if two_stage > 0:
        size += struct.calcsize("<" + _ENTRIES)
    if two_stage < columns:
        size += struct.calcsize("<" + _MEANS)
    return size


def pack_quant_header(header: QuantHeader, columns: int) -> bytes:
    """Write everything of a feature-quantised matrix of K `columns` that precedes the symbols."""
    count = len(header.two_stage)
    parts = [struct.pack("<" + _COUNT, count)]
    if count > 0:
        fields = header.low, header.high, header.multiplier, *header.upgrades
        parts += [
            struct.pack("<" + _ENTRIES, *fields),
            pack_columns(header.two_stage, columns),
        ]
    if count < columns:
        parts.append(
            struct.pack(
                "<" + _MEANS, header.mean_low, header.mean_high, header.mean_levels - 1
            )
        )
    return b"".join(parts)


def unpack_quant_header(
    data: memoryview, columns: int
) -> tuple[QuantHeader, memoryview]:
    """Read what `pack_quant_header` wrote and return the symbols' bytes with it."""
    (count,), rest = take(data, _COUNT)
    if count > columns:
        raise PayloadError(f"{count} two-stage columns of {columns}")
    low = high = mean_low = mean_high = 0.0
    multiplier, upgrades, mean_levels = 1.0, NO_UPGRADES, 1
    two_stage = np.arange(0)
    if count > 0:
        (low, high, multiplier, *more), rest = take(rest, _ENTRIES)
        upgrades = _checked_upgrades(Upgrades(*more))
        _check_interval(low, high, "endpoint")
        if not (isfinite(multiplier) and multiplier > 0):
            raise PayloadError(
                f"multiplier is {multiplier}; a finite positive number was wanted"
            )
        two_stage, rest = unpack_columns(rest, count, columns)
    if count < columns:
        (mean_low, mean_high, last), rest = take(rest, _MEANS)
        _check_interval(mean_low, mean_high, "mean")
        mean_levels = last + 1
        if (mean_levels == 1) != (mean_low == mean_high):
            raise PayloadError(
                f"{mean_levels} mean levels from {mean_low} to {mean_high}"
            )
    header = QuantHeader(
        two_stage, low, high, multiplier, upgrades, mean_low, mean_high, mean_levels
    )
    return header, rest


def _checked_upgrades(upgrades: Upgrades) -> Upgrades:
    if (upgrades.skipped == 0) != (upgrades.more == 0):
        raise PayloadError(
            f"{upgrades.more} upgrades after {upgrades.skipped} skipped; both or neither must be 0"
        )
    return upgrades


# Entry quantisers


class LevelHeader(NamedTuple):
    """What the reader of a matrix whose entries have the same levels knows before the symbols.

    Parameters
    ----------
    levels : int
        ``Q``; 1 exactly if `low` is `high`.
    low, high : float
        Ends of an even grid.
    parameter : int or None
        0 to 255; what it means, and whether there is one, depends on the quantiser.
    """

    levels: int
    low: float
    high: float
    parameter: int | None = None


_LEVELS, _PARAMETER = "Hff", "B"


def level_header_bytes(*, parameter: bool) -> int:
    """Bytes before the symbols."""
    return struct.calcsize("<" + _LEVELS + _PARAMETER * parameter)


def pack_level_header(header: LevelHeader) -> bytes:
    """Write everything that precedes the symbols."""
    data = struct.pack("<" + _LEVELS, header.levels - 1, header.low, header.high)
    return (
        data
        if header.parameter is None
        else data + struct.pack("<" + _PARAMETER, header.parameter)
    )


def unpack_level_header(
    data: memoryview, *, parameter: bool
) -> tuple[LevelHeader, memoryview]:
    """Read what `pack_level_header` wrote and return the symbols' bytes with it."""
    (last, low, high, *more), rest = take(data, _LEVELS + _PARAMETER * parameter)
    _check_interval(low, high, "level")
    if (last == 0) != (low == high):
        raise PayloadError(f"{last + 1} levels from {low} to {high}")
    return LevelHeader(last + 1, low, high, *more), rest


def pack_octets(low: Floats, high: Floats, entries: NDArray[np.uint8]) -> bytes:
    """Write intervals and one byte for each entry."""
    return pack_floats(low, "<f4") + pack_floats(high, "<f4") + entries.tobytes()


def unpack_octets(
    data: memoryview, groups: int, rows: int, columns: int
) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Read so many intervals, ends apart, and a (rows, columns) matrix of bytes."""
    size = 8 * groups + rows * columns
    if len(data) != size:
        raise PayloadError(
            f"matrix has {len(data)} bytes; {rows} x {columns} of 8 bits in {groups} groups take {size}"
        )
    low, high = (
        np.frombuffer(data[: 8 * groups], "<f4").astype(np.float32).reshape(2, groups)
    )
    if not bool(
        ((low >= -MAGNITUDE_LIMIT) & (low <= high) & (high <= MAGNITUDE_LIMIT)).all()
    ):
        raise PayloadError("an interval is not finite, ordered and at most 1e38")
    return low, high, np.frombuffer(data[8 * groups :], np.uint8).reshape(rows, columns)


def _check_interval(low: float, high: float, name: str) -> None:
    if not -MAGNITUDE_LIMIT <= low <= high <= MAGNITUDE_LIMIT:
        raise PayloadError(
            f"{name} interval is {low} to {high}; finite, ordered, at most 1e38 was wanted"
        )


# Product quantiser

_CODEBOOK = "IIHf"


def codebook_bytes(length: int, groups: int, centroids: int) -> int:
    """Bytes before the symbols."""
    return struct.calcsize("<" + _CODEBOOK) + 2 * groups * centroids * length


def pack_codebook(centroids: NDArray[np.float16], scale: float) -> bytes:
    """Write (R, L, d) centroids in units of `scale`."""
    groups, count, length = centroids.shape
    return struct.pack("<" + _CODEBOOK, length, groups, count, scale) + pack_floats(
        centroids, "<f2"
    )


def unpack_codebook(
    data: memoryview, rows: int, columns: int
) -> tuple[Tensor, memoryview]:
    """Read the (R, L, d) centroids of a (B, K) matrix, float32 and finite, and return the symbols' bytes with them."""
    (length, groups, count, scale), rest = take(data, _CODEBOOK)
    if not 1 <= length <= columns:
        raise PayloadError(
            f"subvectors have {length} entries; 1 to {columns} were wanted"
        )
    positions = ceil(columns / length)
    if not 1 <= groups <= positions:
        raise PayloadError(f"{positions} subvectors in {groups} groups")
    if not 1 <= count <= rows * columns // (groups * length):
        raise PayloadError(
            f"{groups} x {count} centroids of {length} entries for a {rows} x {columns} matrix"
        )
    entries, rest = unpack_scaled(rest, groups * count, length, scale)
    return entries.view(groups, count, length), rest


# Mask

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


# Symbols

Model: TypeAlias = int | Symbols | stream.model.Model
"""The levels of all symbols or of each, or how probable they are."""


def sized_model(sizes: Ints) -> stream.model.Model:
    """Symbols with intervals of so many units of ``2**-24``, at least 1 each: constriction adds the 1."""
    return stream.model.Categorical((sizes - 1).astype(np.float64), perfect=False)


def stream_bytes(symbols: int, bits_each: float = 1.0) -> int:
    """Bytes that are enough for so many symbols, of two levels or of so many bits on average."""
    coder_bits = symbols // 4096
    return (
        0
        if symbols == 0
        else 4 + 4 * ((ceil(symbols * bits_each) + coder_bits) // 32 + 1)
    )


def pack_symbols(runs: Iterable[tuple[Symbols, Model]]) -> bytes:
    """Range-code runs of symbols, each with its number of levels (at least 2), one for all or one each."""
    encoder = stream.queue.RangeEncoder()
    for symbols, levels in runs:
        if isinstance(levels, stream.model.Model):
            encoder.encode(symbols, levels)
        elif isinstance(levels, int):
            encoder.encode(symbols, stream.model.Uniform(levels))
        else:
            encoder.encode(symbols, stream.model.Uniform(), levels)
    words: NDArray[np.uint32] = encoder.get_compressed()
    return (
        struct.pack("<I", len(words)) + words.astype("<u4", copy=False).tobytes()
        if len(words)
        else b""
    )


class SymbolReader:
    """Reads back the runs that `pack_symbols` wrote, in the same order.

    The decoder itself would read on past the end of its words, so their number is sent
    and checked. One of even levels takes a bit at least: no stream makes more of them
    than it has bits, whatever a header says.
    """

    def __init__(self, data: memoryview) -> None:
        words = data
        if data:
            (count,), words = take(data, "I")
            if count == 0 or len(words) != 4 * count:
                raise PayloadError(
                    f"symbol stream has {len(words)} bytes; {count} words were announced"
                )
        self._decoder = stream.queue.RangeDecoder(
            np.frombuffer(words, "<u4").astype(np.uint32)
        )
        self._most = 8 * len(words)
        self._read = self._even = 0

    def read(self, count: int, levels: Model) -> Symbols:
        """Read `count` symbols, each below its number of levels (at least 2)."""
        if count == 0:
            return np.zeros(0, np.int32)
        # such a symbol may take next to nothing
        sized = isinstance(levels, stream.model.Model)
        self._read += count
        self._even += 0 if sized else count
        if self._most == 0 or self._even > self._most:
            raise PayloadError(
                f"{self._read} symbols were wanted; the stream has {self._most} bits"
            )
        try:
            if sized:
                symbols = self._decoder.decode(levels, count)
            elif isinstance(levels, int):
                symbols = self._decoder.decode(stream.model.Uniform(levels), count)
            else:
                symbols = self._decoder.decode(stream.model.Uniform(), levels)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise PayloadError("symbol stream is not range-coded data") from error
        return np.asarray(symbols, np.int32)

    def close(self) -> None:
        """Check that the stream may end here."""
        if not self._decoder.maybe_exhausted() or (self._read == 0 and self._most > 0):
            raise PayloadError("symbol stream goes on after the last symbol")


# Transform quantiser


class TransformHeader(NamedTuple):
    """What the reader of a transformed matrix knows before the symbols.

    Parameters
    ----------
    step : float
        float32 and not negative; 0 if the whole matrix is 0, which is all there is
        then.
    channel_reflectors, row_reflectors : int
        Of the channels' transform and of the samples', 0 to 255.
    clamped : bool
        Whether no entry is negative, as after a ReLU.
    """

    step: float
    channel_reflectors: int = 0
    row_reflectors: int = 0
    clamped: bool = False


def pack_transform(
    header: TransformHeader, runs: Iterable[tuple[Symbols, Model]] = ()
) -> bytes:
    """Write a header and all symbols."""
    if header.step == 0:
        return struct.pack("<f", 0.0)
    return struct.pack("<fBB?", *header) + pack_symbols(runs)


def unpack_transform(data: memoryview) -> tuple[TransformHeader, SymbolReader]:
    """Read what `pack_transform` wrote; nothing is to be read from the reader where the step is zero."""
    (step,), rest = take(data, "f")
    if not 0 <= step <= MAGNITUDE_LIMIT:
        raise PayloadError(
            f"step is {step}; finite, not negative, at most 1e38 was wanted"
        )
    if step == 0:
        if len(rest):
            raise PayloadError(f"{len(rest)} bytes follow a step of zero")
        return TransformHeader(step), SymbolReader(rest)
    (channel_reflectors, row_reflectors, clamped), rest = take(rest, "BBB")
    if clamped > 1:
        raise PayloadError(
            f"{clamped} says whether entries are negative; 0 or 1 was wanted"
        )
    return TransformHeader(
        step, channel_reflectors, row_reflectors, clamped == 1
    ), SymbolReader(rest)


# Labels

LABEL_DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bfloat16",
)  # fmt: skip
"""Label types by their code."""

LABEL_CODINGS = ("raw", "range", "<u4", "<u8")
"""How entries are written, by code: as they are, range-coded, or less the offset in four or eight bytes."""


@dataclass(frozen=True)
class LabelHeader:
    """Type, shape and coding of labels; integer labels are `offset` plus the entry, below `levels`."""

    dtype: str
    shape: tuple[int, ...]
    coding: str = "raw"
    offset: int = 0
    levels: int = 0


def pack_label_header(header: LabelHeader) -> bytes:
    """Write everything of labels that precedes their entries."""
    dimensions = len(header.shape)
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(
            f"labels have {dimensions} dimensions; at most {MOST_DIMENSIONS} can be sent"
        )
    codes = (
        LABEL_DTYPES.index(header.dtype),
        dimensions,
        *header.shape,
        LABEL_CODINGS.index(header.coding),
    )
    data = struct.pack(f"<BB{dimensions}IB", *codes)
    if header.coding != "raw":
        data += struct.pack("<q", header.offset)
    return data + struct.pack("<I", header.levels) if header.coding == "range" else data


def unpack_label_header(data: memoryview) -> tuple[LabelHeader, memoryview]:
    """Read what `pack_label_header` wrote and return the entries' bytes with it."""
    (dtype, dimensions), rest = take(data, "BB")
    if dtype >= len(LABEL_DTYPES):
        raise PayloadError(f"unknown label type {dtype}")
    if dimensions > MOST_DIMENSIONS:
        raise PayloadError(
            f"labels have {dimensions} dimensions, more than {MOST_DIMENSIONS}"
        )
    shape, rest = take(rest, f"{dimensions}I")
    (coding,), rest = take(rest, "B")
    if coding >= len(LABEL_CODINGS):
        raise PayloadError(f"unknown label coding {coding}")
    offset = levels = 0
    if LABEL_CODINGS[coding] != "raw":
        (offset,), rest = take(rest, "q")
    if LABEL_CODINGS[coding] == "range":
        (levels,), rest = take(rest, "I")
    return LabelHeader(
        LABEL_DTYPES[dtype], shape, LABEL_CODINGS[coding], offset, levels
    ), rest
