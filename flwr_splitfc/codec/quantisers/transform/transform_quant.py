"""Transform coding of a batch with one step size and a range coder (splitfc-rd)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, exp, frexp, inf, isqrt, log, sqrt

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints, Symbols
from flwr_splitfc.codec.channels import Layout
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.quantisers.transform.coefficients import (
    coefficient_runs,
    read_coefficients,
)
from flwr_splitfc.codec.quantisers.transform.header import (
    TransformHeader,
    pack_transform,
    unpack_transform,
)
from flwr_splitfc.codec.quantisers.transform.integer_codes import (
    Run,
    read_signed,
    signed,
    symbols,
)
from flwr_splitfc.codec.quantisers.transform.klt import (
    LARGEST_KLT,
    REFLECTOR_STEPS,
    fit_reflectors,
    from_directions,
    from_frequencies,
    to_directions,
    to_frequencies,
)
from flwr_splitfc.codec.quantisers.transform.margins import (
    LEAST_MARGIN,
    MOST_BASE,
    MOST_MARGIN,
    Margins,
    bands,
    coded_bits,
)
from flwr_splitfc.codec.statistics import matrix_extremes

DEAD_ZONE = 0.33
"""A coefficient of x steps becomes ``floor(|x| + 0.33)``."""

_LEAST_CENTROID, _CENTROIDS = -6, 16
_UNITS = 256  # of a step, in which the decoder computes

_MARGIN_STEPS = MOST_MARGIN - LEAST_MARGIN

_MOST_STEPS = 4000
_LEAST_BYTES = 32
_LEAST_STEP, _LEAST_EXPONENT = 1e-35, -126
_CHANNEL_REFLECTORS, _ROW_REFLECTORS = 32, 8
_KLT_SHARE, _REFLECTOR_ENTRY_BITS, _MARGIN_BITS, _NONZERO_BITS = 8, 3.3, 4.0, 5.2
_KLT_ENTRIES, _SEARCH_ENTRIES, _QUANTILE_ENTRIES = 2**18, 2**16, 2**12
_FILL, _ENOUGH, _TOLERANCE = 0.985, 0.95, 0.05
_SEARCHES, _PACKED = 4, 6
_POWER, _LEAST_POWER, _MOST_POWER = 1.8, 0.6, 6.0


@dataclass(frozen=True)
class TransformQuant(Quantiser):
    """DCT over each channel's map, KLT over the channels, one step, context-coded coefficients (docs/splitfc-rd.md).

    Examples
    --------
    >>> ramp = torch.linspace(-1, 1, 64).repeat(4, 1)
    >>> payload = TransformQuant().encode(ramp, budget_bytes=200)
    >>> (TransformQuant().decode(memoryview(payload), 4, 64) - ramp).abs().max() < 0.05
    tensor(True)
    """

    def for_layout(self, layout: Layout) -> Quantiser:
        return _LayoutQuant(layout)

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        return _LayoutQuant(Layout.of(matrix.shape)).encode(matrix, budget_bytes)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        return _LayoutQuant(Layout.of((rows, columns))).decode(data, rows, columns)

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """Enough for more than side information; four bytes, a step of zero, are the smallest payload of all."""
        return _LEAST_BYTES + rows // 2 + isqrt(columns)


@dataclass(frozen=True)
class _LayoutQuant(TransformQuant):
    """The quantiser of (B, D) matrices of one layout."""

    layout: Layout

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        least, most = matrix_extremes(matrix)
        unit = 2.0 ** max(frexp(max(most, -least))[1], _LEAST_EXPONENT)
        if least == most == 0:
            return pack_transform(TransformHeader(0.0))
        parts = self.layout.split(matrix / unit)
        rows, channels, places = parts.shape
        some = (
            parts[:: ceil(parts.numel() / _KLT_ENTRIES)]
            .transpose(0, 1)
            .reshape(channels, -1)
        )
        by_channel = fit_reflectors(
            some, _worthwhile(channels, budget_bytes, _CHANNEL_REFLECTORS)
        )
        parts = to_directions(parts, by_channel).reshape(rows, -1)
        some = parts[:, :: ceil(parts.numel() / _KLT_ENTRIES) | 1]
        by_row = fit_reflectors(some, _worthwhile(rows, budget_bytes, _ROW_REFLECTORS))
        parts = to_directions(parts, by_row).view(rows, channels, places)
        values = to_frequencies(parts, self.layout.axes).cpu()
        header = TransformHeader(1.0, by_channel.shape[1], by_row.shape[1], least >= 0)
        head = [*_reflector_runs(by_channel), *_reflector_runs(by_row)]
        return _pack_within(budget_bytes, values, unit, header, head)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        header, reader = unpack_transform(data)
        if header.step == 0:
            return torch.zeros(rows, columns)
        channels, places = self.layout.channels.count, self.layout.places
        by_channel = _read_reflectors(reader, channels, header.channel_reflectors)
        by_row = _read_reflectors(reader, rows, header.row_reflectors)
        margins = _read_margins(reader, rows, channels, places)
        centroids = _centroid_table(reader.read(3, _CENTROIDS))
        at, values = read_coefficients(reader, margins.contexts())
        reader.close()
        sizes = np.abs(values)
        units = np.sign(values) * (_UNITS * sizes + centroids[np.minimum(sizes, 3)])
        parts = torch.zeros(rows * channels * places, dtype=torch.float64)
        parts[torch.from_numpy(at)] = torch.from_numpy(units).double()
        live = np.flatnonzero(np.bincount(at // places % channels))
        parts = parts.view(rows, channels, places).index_select(
            1, torch.from_numpy(live)
        )
        parts = from_frequencies(parts, self.layout.axes)
        if by_row.size:
            parts = from_directions(parts.view(rows, -1), by_row, np.arange(rows))
        parts = from_directions(parts.view(rows, -1, places), by_channel, live)
        matrix = self.layout.join(parts * (header.step / _UNITS)).float()
        return matrix.clamp_(
            0.0 if header.clamped else -MAGNITUDE_LIMIT, MAGNITUDE_LIMIT
        )


def _worthwhile(size: int, budget_bytes: int, most: int) -> int:
    """How many reflections of so many channels or rows to send: a quarter, within a share of the budget."""
    affordable = int(8 * budget_bytes / (_KLT_SHARE * _REFLECTOR_ENTRY_BITS * size))
    return 0 if size > LARGEST_KLT else max(min(size // 4, most, affordable), 0)


# Rate


def _pack_within(
    budget_bytes: int,
    values: Tensor,
    unit: float,
    header: TransformHeader,
    head: list[Run],
) -> bytes:
    """The payload of (B, C, f) values in this unit, with a step that takes the budget."""
    search = _Search(values, 8 * (budget_bytes - len(pack_transform(header, head))))
    best, too_fine, too_coarse = b"", 0.0, inf
    for _ in range(_PACKED):
        step = max(search.step, search.largest / _MOST_STEPS, _LEAST_STEP / unit)
        header = header._replace(step=float(np.float32(step * unit)))
        data = _pack(values, header.step / unit, header, head)
        if len(data) > budget_bytes:
            too_fine = step
        else:
            best, too_coarse = max(best, data, key=len), step
            if len(data) >= _ENOUGH * budget_bytes or step > search.step:
                break
        search.move(len(data) / max(_FILL * budget_bytes, 1))
        if not too_fine < search.step < too_coarse:
            search.step = sqrt(too_fine * too_coarse)
    return best or pack_transform(TransformHeader(0.0))


class _Search:
    """Looks for the step with which (B, C, f) values take the budget; bits fall about as a power of it."""

    def __init__(self, values: Tensor, budget_bits: float) -> None:
        self.largest = float(values.abs().max())
        self.step = self.largest
        self._power, self._excess, self._moved = _POWER, 0.0, 0.0
        goal = _FILL * budget_bits
        some = _some_rows(values)
        share = len(some) / len(values)
        nonzeros = int(share * goal / _NONZERO_BITS)
        if nonzeros < 1:
            return
        self.step = _exceeded_by(some, nonzeros) / (1 - DEAD_ZONE) or self.largest
        for _ in range(_SEARCHES):
            ratio = _bits(some, self.step) / share / goal
            self.move(ratio)
            if abs(ratio - 1) < _TOLERANCE:
                break
        if share < 1:
            self.move(_bits(values, self.step) / goal)

    def move(self, ratio: float) -> None:
        """Go on to another step where this one takes so many times the bits that are wanted."""
        excess = log(min(max(ratio, 0.25), 4.0))
        if abs(self._moved) > 0.1:
            self._power = min(
                max((self._excess - excess) / self._moved, _LEAST_POWER), _MOST_POWER
            )
        self._excess, self._moved = excess, excess / self._power
        self.step *= exp(self._moved)


def _some_rows(values: Tensor) -> Tensor:
    """Evenly spread, so that the leading directions of the rows, which come first, have their share."""
    every = min(ceil(values.numel() / _SEARCH_ENTRIES), len(values))
    return values[every // 2 :: every]


def _exceeded_by(values: Tensor, count: int) -> float:
    """The magnitude that about so many of the values exceed."""
    # odd, for all frequencies
    magnitudes = values.flatten()[:: ceil(values.numel() / _QUANTILE_ENTRIES) | 1].abs()
    place = len(magnitudes) - round(count * len(magnitudes) / values.numel())
    return float(magnitudes.kthvalue(min(max(place, 1), len(magnitudes))).values)


def _bits(values: Tensor, step: float) -> float:
    magnitudes = _magnitudes(values, step)
    if not magnitudes.any():
        return 0.0
    margins = Margins.of(magnitudes)
    count = len(margins.rows) + len(margins.directions) + margins.frequencies.size
    return _MARGIN_BITS * count + coded_bits(margins.contexts(), magnitudes.flatten())


def _magnitudes(values: Tensor, step: float) -> Tensor:
    return values.abs().mul_(1 / step).add_(DEAD_ZONE).floor_()


# Symbols


def _pack(
    values: Tensor, step: float, header: TransformHeader, head: list[Run]
) -> bytes:
    """The payload of values with a step in their unit."""
    magnitudes = _magnitudes(values, step)
    if not magnitudes.any():
        return pack_transform(TransformHeader(0.0))
    return pack_transform(header, [*head, *_runs(values, magnitudes, step)])


def _runs(values: Tensor, magnitudes: Tensor, step: float) -> Iterator[Run]:
    margins = Margins.of(magnitudes)
    yield from _margin_runs(margins)
    yield from symbols(
        _centroids(values, magnitudes, step) - _LEAST_CENTROID, _CENTROIDS
    )
    yield from coefficient_runs(
        magnitudes.flatten(), values.flatten() < 0, margins.contexts()
    )


def _centroids(values: Tensor, magnitudes: Tensor, step: float) -> Ints:
    """Where coefficients of magnitude 1, 2 and more lie on average, in 16ths of a step from it."""
    sizes = _some_rows(magnitudes).numpy().ravel()
    at = np.flatnonzero(sizes)
    beyond = np.abs(_some_rows(values).numpy().ravel()[at]) / step - sizes[at]
    group = np.minimum(sizes[at], 3).astype(np.int64)
    sums, counts = (np.bincount(group, weights, 4)[1:] for weights in (beyond, None))
    points = np.round(16 * sums / np.maximum(counts, 1))
    return points.clip(_LEAST_CENTROID, _LEAST_CENTROID + _CENTROIDS - 1).astype(
        np.int64
    )


def _centroid_table(points: Symbols) -> Ints:
    """What is added to a magnitude of 0, 1, 2 and more, in units of a 256th of a step."""
    return np.array([0, *(_UNITS // 16 * (points + _LEAST_CENTROID))], np.int64)


def _margin_runs(margins: Margins) -> Iterator[Run]:
    """Directions and frequencies as steps from their neighbours, which they are often like."""
    yield from signed(margins.rows, _MARGIN_STEPS)
    yield from symbols(np.array(margins.bases) + MOST_BASE, 2 * MOST_BASE + 1)
    for part in (margins.directions, *margins.frequencies):
        yield from signed(np.diff(part, prepend=0), _MARGIN_STEPS)


def _read_margins(
    reader: SymbolReader, rows: int, directions: int, places: int
) -> Margins:
    by_row = read_signed(reader, rows, _MARGIN_STEPS)
    bases = reader.read(len(list(bands(directions))), 2 * MOST_BASE + 1) - MOST_BASE
    by_direction = np.cumsum(read_signed(reader, directions, _MARGIN_STEPS))
    frequencies = np.stack(
        [np.cumsum(read_signed(reader, places, _MARGIN_STEPS)) for _ in bases]
    )
    for part in (by_row, by_direction, frequencies):
        if part.min() < LEAST_MARGIN or part.max() > MOST_MARGIN:
            raise PayloadError(f"a margin is not {LEAST_MARGIN} to {MOST_MARGIN}")
    return Margins(by_row, tuple(bases.tolist()), by_direction, frequencies)


def _reflector_runs(vectors: Ints) -> Iterator[Run]:
    """The first entry of each vector, which is not negative, and then the entries below it, vector by vector."""
    yield from symbols(np.diagonal(vectors), REFLECTOR_STEPS + 1)
    if vectors.size:
        yield from signed(
            np.concatenate([vector[k + 1 :] for k, vector in enumerate(vectors.T)]),
            REFLECTOR_STEPS,
        )


def _read_reflectors(reader: SymbolReader, directions: int, count: int) -> Ints:
    if count and not count < directions <= LARGEST_KLT:
        raise PayloadError(
            f"{count} reflections of {directions} channels or rows; at most {LARGEST_KLT} are reflected"
        )
    vectors = np.zeros((count, directions), np.int64)
    if count:
        vectors[np.arange(count), np.arange(count)] = reader.read(
            count, REFLECTOR_STEPS + 1
        )
        below = np.arange(directions) > np.arange(count)[:, None]
        vectors[below] = read_signed(reader, int(below.sum()), REFLECTOR_STEPS)
    if not vectors.any(1).all():
        raise PayloadError("a reflection's vector is zero")
    return vectors.T
