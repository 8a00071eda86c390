"""A decoder made from docs/wire-format.md alone: the standard library and nothing else.

Slow and obvious. Values are Python floats that f32 can represent; `Refused` is raised
for every payload that the document says to refuse.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, pairwise
from math import copysign, cos, isfinite, ldexp, pi, prod, sqrt
from typing import NamedTuple, TypeAlias

MAGNITUDE = struct.unpack("<f", struct.pack("<I", 0x7E967699))[0]
LARGEST_F32 = struct.unpack("<f", struct.pack("<I", 0x7F7FFFFF))[0]

Kept: TypeAlias = Sequence[int] | Sequence[Sequence[int]]
"""Columns, of all rows or of each."""


class Refused(ValueError):
    """The payload is malformed."""


def f32(x: float) -> float:
    """Round to binary32."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])
    except OverflowError:
        return float("inf") if x > 0 else float("-inf")


def refuse_if(malformed: bool, why: str) -> None:
    if malformed:
        raise Refused(why)


class Reader:
    """Takes fields off the front of a payload."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def bytes(self, count: int) -> bytes:
        refuse_if(count > self.left, "ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def fields(self, layout: str) -> tuple:  # type: ignore[type-arg]
        return struct.unpack("<" + layout, self.bytes(struct.calcsize("<" + layout)))


# 2. Encoded matrices


class Layout(NamedTuple):
    """C channels of f places, and where (channel, place) lies among the D columns."""

    C: int
    f: int
    axes: tuple[int, ...]
    column: list[list[int]]


class Sent(NamedTuple):
    """What both sides know of a step of the transform codec: the rows that were sent and the layout of each."""

    rows: list[int]
    layout: Layout
    is_levelled: bool

    def matrix(self, reader: Reader, exponents: list[int]) -> list[float]:
        coded = transformed(reader, len(self.rows), self.layout)
        of_column = [0] * (self.layout.C * self.layout.f)
        for exponent, columns in zip(exponents, self.layout.column, strict=True):
            for column in columns:
                of_column[column] = exponent
        exponents_of_all = of_column * len(self.rows)
        return [f32(ldexp(x, -j)) for x, j in zip(coded, exponents_of_all, strict=True)]

    def spread(self, values: list[float], B: int, D: int) -> list[float]:
        of_row = {row: values[i * D : (i + 1) * D] for i, row in enumerate(self.rows)}
        return [value for row in range(B) for value in of_row.get(row, [0.0] * D)]


def decode_features(
    stype: str,
    shape: Sequence[int],
    data: bytes,
    *,
    agreed: str,
    most_rows: int,
    columns: int,
    channel_dim: int | None = None,
) -> tuple[list[float], Kept | Sent]:
    """The (B, D) values row by row, and the kept columns or what is sent."""
    B, D = rows_and_columns(shape)
    refuse_if(most_rows < B or columns != D, "shape")
    refuse_if(stype != agreed, "stype")
    reader = Reader(data)
    if stype == "splitfc-rd/4":
        rows, C, is_levelled, is_turned = row_sample(reader, B)
        if is_turned:
            refuse_if(channel_dim is not None or len(shape) == 2, "C")
            channel_dim = 1 if len(shape) == 3 else -1
        sent = Sent(rows, layout_of(shape, C, channel_dim), is_levelled)
        levels = nibbles(reader, C) if is_levelled else [0] * C
        return sent.spread(sent.matrix(reader, levels), B, D), sent
    select, part = PARTS[stype]
    kept = select(reader, B, D)
    K = len(of_row(kept, 0))
    return spread(part(reader, B, K), B, D, kept, [1.0] * K), kept


def decode_gradient(
    stype: str,
    shape: Sequence[int],
    data: bytes,
    *,
    agreed: str,
    rows: int,
    columns: int,
    kept: Kept | Sent,
    scale: Sequence[float] | None,
) -> list[float]:
    """The (B, D) values row by row, scaled."""
    refuse_if(rows_and_columns(shape) != (rows, columns), "shape")
    refuse_if(stype != agreed, "stype")
    if isinstance(kept, Sent):
        reader = Reader(data)
        C = kept.layout.C
        levels = nibbles(reader, C) if kept.is_levelled else [0] * C
        return kept.spread(kept.matrix(reader, levels), rows, columns)
    K = len(of_row(kept, 0))
    values = OF_GRADIENT.get(stype, PARTS[stype][1])(Reader(data), rows, K)
    if scale is None:
        return spread(values, rows, columns, kept, [1.0] * K)
    refuse_if(
        max(map(abs, values), default=0.0) * max(scale, default=0.0) > LARGEST_F32,
        "scale",
    )
    return spread(values, rows, columns, kept, scale)


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    refuse_if(
        not 1 <= len(shape) <= 8
        or any(type(size) is not int or size < 1 for size in shape),
        "shape",
    )
    return shape[0], prod(shape[1:])


def of_row(kept: Kept, row: int) -> Sequence[int]:
    return kept[row] if kept and not isinstance(kept[0], int) else kept  # type: ignore[return-value]


def spread(
    values: list[float], B: int, D: int, kept: Kept, scale: Sequence[float]
) -> list[float]:
    matrix = [0.0] * (B * D)
    K = len(of_row(kept, 0))
    for row in range(B):
        for i, column in enumerate(of_row(kept, row)):
            matrix[row * D + column] = f32(values[row * K + i] * scale[i])
    return matrix


def floats(layout: str) -> Callable[[Reader, int, int], list[float]]:
    def read(reader: Reader, rows: int, columns: int) -> list[float]:
        count = rows * columns
        refuse_if(reader.left != count * struct.calcsize(layout), "number of bytes")
        values = list(reader.fields(f"{count}{layout}"))
        refuse_if(not all(abs(value) <= MAGNITUDE for value in values), "magnitude")
        return values

    return read


# 3. Column sets and the selection


def column_set(reader: Reader, k: int, n: int) -> list[int]:
    if k in (0, n):
        return list(range(k))
    low_bits = (n // k).bit_length() - 1
    e = k * low_bits + k + ((n - 1) >> low_bits)
    size = min(n, e)
    number = int.from_bytes(reader.bytes(-(-size // 8)), "little")
    refuse_if(number >> size != 0, "padding")
    if n <= e:
        columns = [c for c in range(n) if number >> c & 1]
    else:
        high = [
            at for at in range(e - k * low_bits) if number >> (k * low_bits + at) & 1
        ]
        refuse_if(len(high) != k, "number of columns")
        low = [number >> (i * low_bits) & ((1 << low_bits) - 1) for i in range(k)]
        columns = [(at - i) << low_bits | low[i] for i, at in enumerate(high)]
    refuse_if(len(columns) != k, "number of columns")
    refuse_if(any(b <= a for a, b in pairwise(columns)) or columns[-1] >= n, "order")
    return columns


def all_columns(reader: Reader, B: int, D: int) -> Kept:
    return list(range(D))


def selection(reader: Reader, B: int, D: int) -> Kept:
    (K,) = reader.fields("I")
    refuse_if(K > D, "K")
    return column_set(reader, K, D)


def entry_selection(reader: Reader, B: int, D: int) -> Kept:
    (S,) = reader.fields("I")
    refuse_if(S > D, "S")
    if S == D:
        return list(range(D))
    flat = column_set(reader, B * S, B * D)
    kept = [[at - row * D for at in flat[row * S : row * S + S]] for row in range(B)]
    refuse_if(
        any(at // D != 0 for columns in kept for at in columns), "entries of a row"
    )
    return kept


# 4. The quantised matrix


def grid(i: int, low: float, high: float, Q: int) -> float:
    step = (high - low) / max(Q - 1, 1)
    return f32(low + i * step)


def interval(low: float, high: float) -> None:
    refuse_if(not -MAGNITUDE <= low <= high <= MAGNITUDE, "interval")


def quantised(reader: Reader, B: int, K: int) -> list[float]:
    (M,) = reader.fields("I")
    refuse_if(M > K, "M")
    low = high = m = mean_low = mean_high = 0.0
    first = skipped = more = 0
    two_stage: list[int] = []
    Q0 = 1
    if M > 0:
        low, high, m, first, skipped, more = reader.fields("fffIBB")
        refuse_if((skipped == 0) != (more == 0), "upgrades")
        interval(low, high)
        refuse_if(not (isfinite(m) and m > 0), "multiplier")
        two_stage = column_set(reader, M, K)
    if M < K:
        mean_low, mean_high, last = reader.fields("ffH")
        interval(mean_low, mean_high)
        Q0 = last + 1
        refuse_if((Q0 == 1) != (mean_low == mean_high), "mean levels")

    stream = Stream(reader)
    ends = (
        [(stream.symbol(200), stream.symbol(200)) for _ in range(M)]
        if stream.has(2 * M)
        else []
    )
    refuse_if(any(b < a for a, b in ends), "endpoints")
    of_mean = sorted(set(range(K)) - set(two_stage))
    means = [0] * len(of_mean)
    if Q0 > 1 and stream.has(len(means)):
        means = [stream.symbol(Q0) for _ in means]

    columns = dict(zip(two_stage, ends, strict=True))
    active = [column for column, (a, b) in columns.items() if b > a]
    Q = dict(
        zip(
            active,
            levels([b - a for a, b in ends if b > a], m, first, skipped, more),
            strict=True,
        )
    )
    x = {column: grid(a, low, high, 200) for column, (a, _) in columns.items()}
    s = {
        c: f32(f32(grid(columns[c][1], low, high, 200) - x[c]) / (Q[c] - 1))
        for c in active
    }
    x.update(
        {
            column: grid(i, mean_low, mean_high, Q0)
            for column, i in zip(of_mean, means, strict=True)
        }
    )

    matrix = [x[column] for _ in range(B) for column in range(K)]
    if stream.has(B * len(active)):
        for row in range(B):
            for column in active:
                matrix[row * K + column] = f32(
                    x[column] + f32(stream.symbol(Q[column]) * s[column])
                )
    stream.end()
    return matrix


def level_fields(
    reader: Reader, B: int, K: int, layout: str = ""
) -> tuple[int, float, float, int, list[int]]:
    """``Q``, low, high, the method's own field if it has one, and the symbols."""
    last, low, high, *own = reader.fields("Hff" + layout)
    interval(low, high)
    refuse_if((last == 0) != (low == high), "levels")
    stream, symbols = Stream(reader), [0] * (B * K)
    if last > 0 and stream.has(len(symbols)):
        symbols = [stream.symbol(last + 1) for _ in symbols]
    stream.end()
    return last + 1, low, high, own[0] if own else 0, symbols


def even_levels(reader: Reader, B: int, K: int) -> list[float]:
    Q, low, high, _, symbols = level_fields(reader, B, K)
    return [grid(symbol, low, high, Q) for symbol in symbols]


def levels_of_a_power(reader: Reader, B: int, K: int) -> list[float]:
    Q, low, high, n, symbols = level_fields(reader, B, K, "B")
    refuse_if(not 8 <= n <= 64, "power")
    step = (high - low) / max(Q - 1, 1)

    def level(symbol: int) -> float:
        t = low + symbol * step
        r = power = sqrt(sqrt(sqrt(abs(t))))
        for _ in range(n - 1):
            power *= r
        return f32(copysign(power, t))

    refuse_if(max(abs(level(0)), abs(level(Q - 1))) > MAGNITUDE, "magnitude")
    return [level(symbol) for symbol in symbols]


def even_levels_and_noise(reader: Reader, B: int, K: int) -> list[float]:
    Q, low, high, A, symbols = level_fields(reader, B, K, "B")
    step = (high - low) / max(Q - 1, 1)
    v = [
        f32(((((j + 1) * 2654435769 % 2**32 + 0.5) / 2**32 - 0.5) * A / 255) * step)
        for j in range(K)
    ]
    values = [
        f32(grid(symbol, low, high, Q) - v[i % K]) for i, symbol in enumerate(symbols)
    ]
    return [low if value < low else high if value > high else value for value in values]


def eight_bits(reader: Reader, B: int, K: int) -> list[float]:
    G = K if B >= 64 else min(K, 1)
    refuse_if(reader.left != 8 * G + B * K, "number of bytes")
    lows, highs = reader.fields(f"{G}f"), reader.fields(f"{G}f")
    for low, high in zip(lows, highs, strict=True):
        interval(low, high)
    s = [f32(f32(high - low) / 255) for low, high in zip(lows, highs, strict=True)]
    entries = reader.fields(f"{B * K}B")
    return [f32(lows[i % G] + f32(entry * s[i % G])) for i, entry in enumerate(entries)]


# 5. Levels


@cache
def table_t() -> list[float]:
    return [float(q - 1) * (q - 1) * (q - 1) / q for q in range(2, 65537)]


@cache
def s_of(q: int) -> float:
    z = 1 / (2.0 * q + 1)
    t = 0.0
    for k in reversed(range(14)):
        t = t * (z * z) + 1 / (2.0 * k + 1)
    p = float(q - 1) * q
    return 2 * (2 * z * t) * (p * p) / (2.0 * q - 1)


def levels(
    spans: list[int], m: float, first: int, skipped: int, more: int
) -> list[int]:
    """``Q`` of the columns that span so many steps, all above 0."""
    q = [max(2, bisect_right(table_t(), m * n * n) + 1) for n in spans]
    worth = sorted(
        (s_of(q[i]) / (n * n), i) for i, n in enumerate(spans) if q[i] < 65536
    )
    refuse_if(len(worth) < first + skipped + more, "upgrades")
    for _, i in worth[:first] + worth[first + skipped : first + skipped + more]:
        q[i] += 1
    return q


# 6. The symbol stream


class Stream:
    """The range decoder."""

    def __init__(self, reader: Reader) -> None:
        self.words: Sequence[int] = ()
        if reader.left:
            (W,) = reader.fields("I")
            refuse_if(W == 0 or reader.left != 4 * W, "number of words")
            self.words = reader.fields(f"{W}I")
        self.wanted = self.at = 0
        self.low, self.range = 0, 2**64 - 1
        self.point = self.word() << 32
        self.point |= self.word()

    def word(self) -> int:
        self.at += 1
        return self.words[self.at - 1] if self.at <= len(self.words) else 0

    def has(self, symbols: int) -> bool:
        """Whether any symbols are wanted; refuses more than there can be."""
        self.wanted += symbols
        refuse_if(self.wanted > 32 * len(self.words), "number of symbols")
        return symbols > 0

    def symbol(self, Q: int) -> int:
        p = 2**24 // Q
        k = min(self.v() // p, Q - 1)
        self.take(k * p, p if k < Q - 1 else 2**24 - k * p)
        return k

    def sized_symbol(self, sizes: Sequence[int]) -> int:
        k, left, v = 0, 0, self.v()
        while v >= left + sizes[k]:
            left += sizes[k]
            k += 1
        self.take(left, sizes[k])
        return k

    def v(self) -> int:
        v = (self.point - self.low) % 2**64 // (self.range >> 24)
        refuse_if(v >= 2**24, "symbol")
        return v

    def take(self, left: int, size: int) -> None:
        scale = self.range >> 24
        self.low = (self.low + scale * left) % 2**64
        self.range = scale * size
        if self.range < 2**32:
            self.low = (self.low << 32) % 2**64
            self.range <<= 32
            self.point = (self.point << 32) % 2**64 + self.word()

    def end(self) -> None:
        refuse_if(self.wanted == 0 and len(self.words) > 0, "end")
        if self.wanted:
            refuse_if(
                self.at < len(self.words)
                or (self.point - self.low) % 2**64 >= 2**33 - 1,
                "end",
            )


# 12. The product-quantised matrix


def scaled_halves(reader: Reader, count: int, scale: float) -> list[float]:
    refuse_if(not (isfinite(scale) and scale > 0), "scale")
    halves = reader.fields(f"{count}e")
    refuse_if(not all(abs(value) <= MAGNITUDE for value in halves), "magnitude")
    values = [f32(value * scale) for value in halves]
    refuse_if(not all(abs(value) <= MAGNITUDE for value in values), "magnitude")
    return values


def product_quantised(reader: Reader, B: int, K: int) -> list[float]:
    if K == 0:
        refuse_if(reader.left > 0, "number of bytes")
        return []
    d, R, L, scale = reader.fields("IIHf")
    refuse_if(not 1 <= d <= K, "d")
    q = -(-K // d)
    refuse_if(not 1 <= R <= q, "R")
    refuse_if(not 1 <= L <= B * K // (R * d), "L")
    entries = scaled_halves(reader, R * L * d, scale)
    stream = Stream(reader)
    indices = [0] * (B * q)
    if L > 1 and stream.has(B * q):
        indices = [stream.symbol(L) for _ in indices]
    stream.end()
    matrix: list[float] = []
    for row in range(B):
        pieces: list[float] = []
        for j in range(q):
            at = (j * R // q * L + indices[row * q + j]) * d
            pieces += entries[at : at + d]
        matrix += pieces[:K]
    return matrix


# 13. The mask-encoded matrix


def mask_encoded(reader: Reader, B: int, K: int) -> list[float]:
    if B * K == 0:
        refuse_if(reader.left > 0, "number of bytes")
        return []
    k, scale, *sizes = reader.fields("If6I")
    refuse_if(not 1 <= k <= B * K, "k")
    refuse_if(min(sizes) < 1 or sum(sizes) != 2**24, "sizes")
    sent = scaled_halves(reader, k, scale)
    stream = Stream(reader)
    refuse_if(not stream.words, "number of symbols")
    stream.wanted = B * K
    symbols = [stream.sized_symbol(sizes) for _ in range(B * K)]
    stream.end()
    refuse_if(symbols.count(5) != k, "k")
    third = f32(min(map(abs, sent)) / 3)
    values, tops = [0.0, third, 2 * third, -third, -2 * third], iter(sent)
    return [next(tops) if symbol == 5 else values[symbol] for symbol in symbols]


# 14. The transformed matrix


def layout_of(shape: Sequence[int], C: int, channel_dim: int | None) -> Layout:
    D = prod(shape[1:])
    if len(shape) <= 2 and channel_dim is None:
        refuse_if(C < 1 or D % C > 0, "C")
        return Layout(
            C,
            D // C,
            (),
            [[c * (D // C) + place for place in range(D // C)] for c in range(C)],
        )
    p = (
        (2 if len(shape) == 3 else 1)
        if channel_dim is None
        else channel_dim % len(shape)
    )
    refuse_if(shape[p] != C, "C")
    inner = prod(shape[p + 1 :])
    column = [
        [
            (outer * C + c) * inner + i
            for outer in range(prod(shape[1:p]))
            for i in range(inner)
        ]
        for c in range(C)
    ]
    return Layout(C, D // C, (*shape[1:p], *shape[p + 1 :]), column)


def row_sample(reader: Reader, B: int) -> tuple[list[int], int, bool, bool]:
    """The rows that are sent, C, whether channels are levelled, and whether C is turned."""
    field, b = reader.fields("II")
    C = field & 0x3FFFFFFF
    refuse_if(not 1 <= b <= B, "b")
    rows = column_set(reader, b, B)
    is_levelled, is_turned = field >> 31 == 1, field >> 30 & 1 == 1
    refuse_if(is_turned and not is_levelled, "C")
    return rows, C, is_levelled, is_turned


def nibbles(reader: Reader, count: int) -> list[int]:
    octets = reader.bytes((count + 1) // 2)
    found = [part for octet in octets for part in (octet & 15, octet >> 4)]
    refuse_if(any(found[count:]), "half a byte")
    return found[:count]


def evens(stream: Stream, levels: Sequence[int]) -> list[int]:
    stream.has(len(levels))
    return [stream.symbol(Q) for Q in levels]


def bits(stream: Stream, widths: Sequence[int]) -> list[int]:
    values = [0] * len(widths)
    for shift in (16, 0):
        parts = [max(width - 16, 0) if shift else min(width, 16) for width in widths]
        wide = [i for i, part in enumerate(parts) if part > 0]
        for i, value in zip(
            wide, evens(stream, [1 << parts[i] for i in wide]), strict=True
        ):
            values[i] |= value << shift
    return values


def escaped(stream: Stream, count: int) -> list[int]:
    widths = evens(stream, [32] * count)
    return [
        (1 << width) + low - 1
        for width, low in zip(widths, bits(stream, widths), strict=True)
    ]


def falling(whole: int, part: int, parts: int, symbols: int) -> list[int]:
    sizes = []
    for left in range(symbols - 1, 0, -1):
        sizes.append(min(max(whole * part // parts, 1), whole - left))
        whole -= sizes[-1]
    return [*sizes, whole]


def signed(stream: Stream, count: int, most: int) -> list[int]:
    zero, ratio = evens(stream, [64, 32])
    others = 2**24 * (zero + 1) // 65
    sizes = [2**24 - others, *falling(others, 32 - ratio, 33, most)]
    magnitudes = [stream.sized_symbol(sizes) for _ in range(count)]
    signs = iter(evens(stream, [2] * (count - magnitudes.count(0))))
    return [-m if m and next(signs) else m for m in magnitudes]


@cache
def sizes_of_nonzeros(g: int, ratio: int) -> list[int]:
    magnitudes = falling(2**24, 32 - ratio, 33, 15)
    sizes = [
        max(gap * m >> 24, 1)
        for gap in falling(2**24, 127 - 2 * g, 128, 32)
        for m in magnitudes
    ]
    return [sizes[0] + 2**24 - sum(sizes), *sizes[1:]]


def transformed(reader: Reader, b: int, layout: Layout) -> list[float]:
    C, f, axes, column = layout
    D = C * f
    (step,) = reader.fields("f")
    refuse_if(not 0 <= step <= MAGNITUDE, "step")
    if step == 0:
        refuse_if(reader.left > 0, "number of bytes")
        return [0.0] * (b * D)
    r, r_rows, known = reader.fields("BBB")
    refuse_if(known > 2, "known")
    stream = Stream(reader)
    refuse_if(not stream.words, "number of symbols")
    of_channels, of_rows = reflectors(stream, C, r), reflectors(stream, b, r_rows)
    rows = signed(stream, b, 46)
    bands = [range(min(4, C)), range(4, C)][: 1 + (C > 4)]
    bases = [base - 14 for base in evens(stream, [29] * len(bands))]
    directions = list(accumulate(signed(stream, C, 46)))
    frequencies = [list(accumulate(signed(stream, f, 46))) for _ in bands]
    margins = [*rows, *directions, *(m for band in frequencies for m in band)]
    refuse_if(not all(-14 <= margin <= 32 for margin in margins), "margin")
    offsets = [0, *(16 * (point - 6) for point in evens(stream, [16] * 3))]

    members: list[list[int]] = [[] for _ in range(40)]
    for row in range(b):
        for base, band, frequency in zip(bases, bands, frequencies, strict=True):
            for c in band:
                for place in range(f):
                    context = min(
                        max(
                            rows[row] + base + directions[c] + frequency[place] + 26, 0
                        ),
                        39,
                    )
                    members[context].append((row * C + c) * f + place)

    used = [part for part in members if part]
    widths = evens(stream, [len(part).bit_length() + 1 for part in used])
    low = bits(stream, [max(width - 1, 0) for width in widths])
    counts = [
        (1 << width - 1) + rest if width else 0
        for width, rest in zip(widths, low, strict=True)
    ]
    refuse_if(any(n > len(part) for n, part in zip(counts, used, strict=True)), "n")
    live = [(n, part) for n, part in zip(counts, used, strict=True) if n]
    ratios = evens(stream, [32] * len(live))
    shifts, gaps, sizes = [], [], []
    for (n, part), ratio in zip(live, ratios, strict=True):
        s = min(22, (len(part) // (3 * n)).bit_length())
        stays = ((len(part) - n) << 24) // len(part)
        for _ in range(s):
            stays = stays * stays >> 24
        for _ in range(n):
            gap, m = divmod(
                stream.sized_symbol(sizes_of_nonzeros(stays * 64 >> 24, ratio)), 15
            )
            shifts.append(s)
            gaps.append(gap)
            sizes.append(m + 1)
    tails = bits(stream, [s + 1 for s in shifts])
    far = iter(escaped(stream, gaps.count(31)))
    gaps = [gap + next(far) if gap == 31 else gap for gap in gaps]
    large = iter(escaped(stream, sizes.count(15)))
    sizes = [m + next(large) if m == 15 else m for m in sizes]
    stream.end()
    refuse_if(max(sizes, default=0) > 32768, "magnitude")

    x = [0] * (b * D)
    nonzero = zip(gaps, shifts, tails, sizes, strict=True)
    for n, part in live:
        at = -1
        for _ in range(n):
            gap, s, tail, m = next(nonzero)
            at += (gap << s | tail >> 1) + 1
            refuse_if(at >= len(part), "gap")
            x[part[at]] = (256 * m + offsets[min(m, 3)]) * (-1 if tail & 1 else 1)
    x = inverse_dct(x, axes)
    x = directed(x, klt(of_rows, b), 1, D)
    x = directed(x, klt(of_channels, C), b, f)
    if known == 2:
        n = b * f
        for c in range(C):
            own = [(row * C + c) * f + place for row in range(b) for place in range(f)]
            mean = (2 * sum(x[at] for at in own) + n) // (2 * n)
            for at in own:
                x[at] -= mean
    matrix = [0.0] * (b * D)
    for row in range(b):
        for c in range(C):
            for place in range(f):
                value = f32(x[(row * C + c) * f + place] * (step / 256))
                matrix[row * D + column[c][place]] = min(
                    max(value, 0.0 if known == 1 else -MAGNITUDE), MAGNITUDE
                )
    return matrix


def reflectors(stream: Stream, n: int, r: int) -> list[list[int]]:
    if r == 0:
        return []
    refuse_if(r >= n or n > 512, "r")
    w = [[0] * n for _ in range(r)]
    for k, first in enumerate(evens(stream, [33] * r)):
        w[k][k] = first
    below = iter(signed(stream, r * n - r * (r + 1) // 2, 32))
    for k in range(r):
        w[k][k + 1 :] = [next(below) for _ in range(k + 1, n)]
    refuse_if(not all(any(vector) for vector in w), "w")
    return w


def directed(x: list[int], U: list[list[int]], groups: int, after: int) -> list[int]:
    """Each run of n x after values, multiplied by U."""
    n = len(U)
    return [
        rounded(sum(U[i][k] * x[(group * n + k) * after + place] for k in range(n)), 14)
        for group in range(groups)
        for i in range(n)
        for place in range(after)
    ]


def rounded(y: int, shift: int) -> int:
    return (y + (1 << shift - 1)) >> shift


def inverse_dct(x: list[int], axes: Sequence[int]) -> list[int]:
    after = prod(axes)
    for n in axes:
        after //= n
        length = next(d for d in range(min(n, 64), 0, -1) if n % d == 0)
        if length == 1:
            continue
        waves = dct(length)
        y = list(x)
        for start in range(0, len(x), length * after):
            for i in range(after):
                block = x[start + i : start + length * after : after]
                for place in range(length):
                    y[start + i + place * after] = rounded(
                        sum(value * waves[k][place] for k, value in enumerate(block)),
                        12,
                    )
        x = y
    return x


@cache
def dct(n: int) -> list[list[int]]:
    scale = [sqrt((2 if k else 1) / n) * 4096 for k in range(n)]
    return [
        [round(scale[k] * cos(pi * (2 * i + 1) * k / (2 * n))) for i in range(n)]
        for k in range(n)
    ]


def klt(w: list[list[int]], C: int) -> list[list[int]]:
    U = [[2**14 * (i == j) for j in range(C)] for i in range(C)]
    for vector in reversed(w):
        n = sum(v * v for v in vector)
        t = [sum(vector[i] * U[i][j] for i in range(C)) for j in range(C)]
        U = [
            [U[i][j] - (4 * vector[i] * t[j] + n) // (2 * n) for j in range(C)]
            for i in range(C)
        ]
    return U


# 7. Labels

TYPES = {
    0: ("bool", "?", 0, 1),
    1: ("uint8", "B", 0, 2**8 - 1),
    2: ("int8", "b", -(2**7), 2**7 - 1),
    3: ("int16", "h", -(2**15), 2**15 - 1),
    4: ("int32", "i", -(2**31), 2**31 - 1),
    5: ("int64", "q", -(2**63), 2**63 - 1),
    6: ("float16", "e", -(2**11), 2**11),
    7: ("float32", "f", -(2**24), 2**24),
    8: ("float64", "d", -(2**53), 2**53),
    9: ("bfloat16", "H", 0, 0),
}


def varint(reader: Reader) -> int:
    value = 0
    for place in range(10):
        (octet,) = reader.fields("B")
        value |= (octet & 127) << 7 * place
        if octet < 128:
            refuse_if((octet == 0 and place > 0) or value >= 2**64, "varint")
            return value
    raise Refused("varint")


def even_labels(reader: Reader, count: int, Q: int) -> list[int]:
    stream = ExactStream(reader.bytes(reader.left))
    entries = [0] * count
    if Q > 1 and stream.has(count):
        entries = [stream.symbol(Q) for _ in entries]
    stream.end()
    return entries


def counted(reader: Reader, n: int, Q: int, k: int) -> list[int]:
    refuse_if(n > 2**23 or k > min(n, Q, 65535), "values")
    values = column_set(reader, k, Q)
    ends = [0, *(end + 1 for end in column_set(reader, k - 1, n - 1)), n]
    counts = [after - before for before, after in pairwise(ends)]
    stream = ExactStream(reader.bytes(reader.left))
    ranks = [0] * n
    if k > 1:
        sizes = [(times << 24) // n for times in counts]
        sizes[counts.index(max(counts))] += 2**24 - sum(sizes)
        stream.wanted = n
        ranks = [stream.sized_symbol(sizes) for _ in ranks]
    stream.end()
    refuse_if([ranks.count(rank) for rank in range(k)] != counts, "counts")
    return [values[rank] for rank in ranks]


def decode_labels(data: bytes, most_entries: int) -> tuple[str, tuple[int, ...], bytes]:
    """Type, shape, and the entries in their own type, row by row."""
    reader = Reader(data)
    code, dimensions = reader.fields("BB")
    refuse_if(code not in TYPES or dimensions > 8, "type")
    name, layout, least, most = TYPES[code]
    shape = reader.fields(f"{dimensions}I")
    (coding,) = reader.fields("B")
    refuse_if(coding > 4, "coding")
    offset = Q = k = 0
    if coding == 4:
        zigzag, Q, k = varint(reader), varint(reader), varint(reader)
        offset = -(zigzag // 2) - 1 if zigzag % 2 else zigzag // 2
    elif coding > 0:
        (offset,) = reader.fields("q")
    if coding == 1:
        (Q,) = reader.fields("I")
    refuse_if(prod(size or 1 for size in shape) > most_entries, "number of entries")
    count = prod(shape)
    if coding == 0:
        refuse_if(count > 0 and code < 6, "coding")
    else:
        refuse_if(count == 0 or code == 9 or (code > 5 and coding != 4), "coding")
    if coding == 0:
        refuse_if(
            reader.left != count * struct.calcsize("<" + layout), "number of bytes"
        )
        return name, shape, reader.bytes(reader.left)
    if coding == 1:
        refuse_if(not 1 <= Q <= 65536, "levels")
        stream = Stream(reader)
        entries = [0] * count
        if Q > 1 and stream.has(count):
            entries = [stream.symbol(Q) for _ in entries]
        stream.end()
    elif coding == 4:
        refuse_if(not 1 <= Q <= 65536, "levels")
        entries = (
            even_labels(reader, count, Q) if k == 0 else counted(reader, count, Q, k)
        )
    else:
        width = "I" if coding == 2 else "Q"
        refuse_if(
            reader.left != count * struct.calcsize("<" + width), "number of bytes"
        )
        entries = list(reader.fields(f"{count}{width}"))
    refuse_if(offset < least or offset + max(entries) > most, "range")
    return (
        name,
        shape,
        struct.pack(f"<{count}{layout}", *(offset + entry for entry in entries)),
    )


PARTS: dict[
    str,
    tuple[
        Callable[[Reader, int, int], Kept], Callable[[Reader, int, int], list[float]]
    ],
] = {
    "float32/1": (all_columns, floats("f")),
    "float16/1": (all_columns, floats("e")),
    "dropout-only/1": (selection, floats("f")),
    "quant-only/1": (all_columns, quantised),
    "splitfc/1": (selection, quantised),
    "fedlite/1": (all_columns, product_quantised),
    "mask-encoded/1": (all_columns, mask_encoded),
    "top-s/1": (entry_selection, floats("e")),
    "rand-top-s/1": (entry_selection, floats("e")),
    "int8/1": (all_columns, eight_bits),
    "splitfc-uniform/1": (selection, even_levels),
    "splitfc-easy/1": (selection, even_levels),
    "splitfc-power/1": (selection, levels_of_a_power),
    "splitfc-noisy/1": (selection, even_levels_and_noise),
}
"""What features start with, and the part that follows."""

OF_GRADIENT = {"mask-encoded/1": floats("e")}
"""Where it is another part than that of features."""


# 15. Model arrays and optimizer state


class Words:
    """The range encoder of section 6."""

    def __init__(self) -> None:
        self.low, self.range = 0, 2**64 - 1
        self.words: list[int] = []

    def carry(self) -> None:
        if self.low >= 2**64:
            self.low -= 2**64
            at = len(self.words) - 1
            while self.words[at] == 2**32 - 1:
                self.words[at] = 0
                at -= 1
            self.words[at] += 1

    def take(self, left: int, size: int) -> None:
        scale = self.range >> 24
        self.low += scale * left
        self.range = scale * size
        self.carry()
        if self.range < 2**32:
            self.words.append(self.low >> 32)
            self.low = (self.low << 32) % 2**64
            self.range <<= 32

    def finish(self) -> list[int]:
        end = (self.low + self.range) % 2**64 >> 32
        self.low += 2**32 - 1
        self.carry()
        self.words.append(self.low >> 32)
        return [*self.words, 0] if end == self.words[-1] else self.words


class ExactStream(Stream):
    """Words without their number, which must be those that encode the symbols again."""

    def __init__(self, data: bytes) -> None:
        refuse_if(len(data) % 4 > 0, "number of bytes")
        W = struct.pack("<I", len(data) // 4) if data else b""
        super().__init__(Reader(W + data))
        self.again = Words()

    def take(self, left: int, size: int) -> None:
        self.again.take(left, size)
        super().take(left, size)

    def end(self) -> None:
        again = self.again.finish() if self.wanted else []
        refuse_if(list(self.words) != again, "words")


FORMS = {
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "bool": "?",
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "complex64": "2f",
    "complex128": "2d",
}

LIMITS = {
    "float16": (2.0**-24, 65504.0),
    "float32": (2.0**-149, LARGEST_F32),
    "float64": (2.0**-1074, (2 - 2.0**-52) * 2.0**1023),
}
"""The smallest and the largest positive number."""


def decode_array(stype: str, dtype: str, shape: Sequence[int], data: bytes) -> bytes:
    """The entries in their own type, row by row."""
    refuse_if(stype not in ARRAY_DECODERS and stype != "array-exact/1", "stype")
    refuse_if(dtype not in FORMS, "dtype")
    sizes = [size for size in shape if 0 <= size < 2**31]
    refuse_if(len(shape) > 32 or len(sizes) < len(shape), "shape")
    count = prod(shape)
    if stype == "array-exact/1":
        size = count * struct.calcsize("<" + FORMS[dtype])
        refuse_if(len(data) != size, "number of bytes")
        refuse_if(dtype == "bool" and max(data, default=0) > 1, "bool")
        return data
    refuse_if(dtype not in LIMITS or count < 16, "coded")
    least, most = LIMITS[dtype]
    values = ARRAY_DECODERS[stype](Reader(data), shape, least)
    entries = [min(max(value, -most), most) for value in values]
    return struct.pack(f"<{count}{FORMS[dtype]}", *entries)


def levelled_steps(reader: Reader, shape: Sequence[int], least: float) -> list[float]:
    refuse_if(len(shape) < 2 or prod(shape) < 8 * shape[1], "columns")
    halves = nibbles(reader, shape[1])
    refuse_if(not reader.left, "zeros")
    inner = prod(shape[2:])
    exponents = [e for e in halves for _ in range(inner)] * shape[0]
    values = even_steps(reader, shape, least)
    return [ldexp(value, -e) for value, e in zip(values, exponents, strict=True)]


def even_steps(reader: Reader, shape: Sequence[int], least: float) -> list[float]:
    if not reader.left:
        return [0.0] * prod(shape)
    (step,) = reader.fields("f")
    refuse_if(not (isfinite(step) and step > 0), "step")
    return [k * step for k in integers(reader, prod(shape), may_have_zeros=False)]


def octave_steps(reader: Reader, shape: Sequence[int], least: float) -> list[float]:
    (parameters,) = reader.fields("i")
    c, b = parameters // 16, parameters % 16 + 2
    refuse_if(b > 16, "b")
    values = []
    for d in integers(reader, prod(shape), may_have_zeros=True):
        value = max(power(c + (d or 0), b), least)
        values.append(0.0 if d is None else value)
    return values


ARRAY_DECODERS = {
    "array-uniform/1": even_steps,
    "array-levelled/1": levelled_steps,
    "array-log/1": octave_steps,
}


def power(k: int, b: int) -> float:
    """2^(k * 2^(4 - b))."""
    j = max(b - 4, 0)
    o = k << 4 - b if b < 4 else k >> j
    refuse_if(not -1100 <= o <= 1100, "octave")
    p, r = 1.0, 2.0
    for i in range(1, j + 1):
        r = sqrt(r)
        if k >> j - i & 1:
            p = p * r
    try:
        return ldexp(p, o)
    except OverflowError:
        return float("inf")


def class_range(C: int) -> tuple[int, int]:
    """The least magnitude and the bits of a place."""
    if C < 4:
        return C, 0
    w = C // 2 - 1
    return (2 + C % 2) << w, w


def mark_weight(q: int, m: int) -> int:
    if q == 0:
        return 0
    return (2**m + (q - 1) % 2**m) << (q - 1) // 2**m


def integers(reader: Reader, count: int, may_have_zeros: bool) -> list[int | None]:
    """None for zeros that are told apart."""
    first, classes = reader.fields("BB")
    zeros, eight = first >= 128, classes >= 128
    lowest, n = first % 128 - 61, classes % 128
    refuse_if(zeros and not may_have_zeros, "zeros")
    refuse_if(n == 0 or lowest + n - 1 > 61, "classes")
    symbols = n + zeros
    sizes = []
    refuse_if(symbols == 1 and eight, "marks")
    if symbols > 1:
        marks = list(reader.fields(f"{symbols if eight else (symbols + 1) // 2}B"))
        if not eight:
            marks = [half for mark in marks for half in (mark & 15, mark >> 4)]
        refuse_if(not any(marks[:symbols]) or any(marks[symbols:]), "marks")
        weights = [mark_weight(q, 4 if eight else 1) for q in marks[:symbols]]
        sizes = [max(weight * 2**24 // sum(weights), 1) for weight in weights]
        sizes[weights.index(max(weights))] += 2**24 - sum(sizes)
    stream = ExactStream(reader.bytes(reader.left))
    values: list[int | None] = []
    for start in range(0, count, 65536):
        block = [0] * min(65536, count - start)
        if symbols > 1:
            refuse_if(not stream.words, "number of symbols")
            stream.wanted += 1
            block = [stream.sized_symbol(sizes) for _ in block]
        ranges = [(0, 0) if s == n else class_range(abs(lowest + s)) for s in block]
        places = bits(stream, [w for _, w in ranges])
        for s, (least, _), place in zip(block, ranges, places, strict=True):
            k = least + place
            values.append(None if s == n else k if lowest + s > 0 else -k)
    stream.end()
    return values
