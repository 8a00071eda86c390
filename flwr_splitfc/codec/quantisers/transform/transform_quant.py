"""Transform coding of a batch with one step size and a range coder (splitfc-rd).

A (B, D) matrix is seen as (B, C, f): rows, channels, places of a channel's map. The
encoder

1. writes it in directions of the channels and of the rows (`klt`, `reflectors`), or of
   the rows alone, where an offset is too large for that (`row_means`), or as it is,
   where directions would take more bits at the step of a quality,
2. then in frequencies of the maps (`dct`);
3. searches a step that takes the budget (`rate_search`, `code_length`),
4. and codes the coefficients in steps (`dead_zone`, `margins`, `coefficients`).

The decoder puts coefficients at their centroids (`centroids`) and inverts 2 and 1.

See docs/splitfc-rd.md, "The method", and docs/wire-format.md, section 14.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import frexp, inf, isqrt
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints, Mask
from flwr_splitfc.codec.channels import Layout
from flwr_splitfc.codec.format.bits import Run
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT
from flwr_splitfc.codec.quality import AUTOMATIC, root_mean_square
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.quantisers.transform.centroids import (
    UNITS_PER_STEP,
    centroid_runs,
    fit_centroids,
    read_centroids,
    reconstructed,
)
from flwr_splitfc.codec.quantisers.transform.code_length import estimated_bits
from flwr_splitfc.codec.quantisers.transform.coefficients import (
    coefficient_runs,
    read_coefficients,
)
from flwr_splitfc.codec.quantisers.transform.dct import from_frequencies, to_frequencies
from flwr_splitfc.codec.quantisers.transform.dead_zone import (
    magnitudes_in_steps,
    nonzero_places,
)
from flwr_splitfc.codec.quantisers.transform.fixed_point import channel_means
from flwr_splitfc.codec.quantisers.transform.header import (
    ZERO_MATRIX,
    Known,
    TransformHeader,
    pack_transform,
    unpack_transform,
)
from flwr_splitfc.codec.quantisers.transform.klt import from_directions, to_directions
from flwr_splitfc.codec.quantisers.transform.margins import (
    Margins,
    margin_runs,
    read_margins,
)
from flwr_splitfc.codec.quantisers.transform.rate_search import (
    estimated_search,
    largest_payload,
)
from flwr_splitfc.codec.quantisers.transform.reflectors import (
    FEW_CHANNELS,
    FEW_ROWS,
    MANY_CHANNELS,
    REFLECTOR_ENTRY_BITS,
    fit_reflectors,
    no_reflectors,
    read_reflectors,
    reflector_runs,
    reflectors_worthwhile,
)
from flwr_splitfc.codec.quantisers.transform.row_means import mean_reflectors
from flwr_splitfc.codec.quantisers.transform.sampling import (
    channel_samples,
    row_samples,
    spread_part,
)
from flwr_splitfc.codec.statistics import matrix_extremes

_MOST_STEPS = 32000
"""Steps of a coefficient; a decoder refuses more than 2^15."""

_LEAST_STEP = 1e-35
"""In the matrix' own unit: a step that float32 holds with full precision."""

_LEAST_EXPONENT = -126
"""Of the unit in which the encoder computes, a power of two that float32 holds."""

_LIKELY_BITS = 2
"""About what an entry takes with a step; what reflections may take goes by it."""

_PROMISED_STEPS = 0.4
"""What entries may be off by, root mean square; most steps make it sqrt(1 / 12)."""

_CENTRED = 1e-4
"""Of the mean magnitude: what sums of float32 leave of a mean that is zero."""

_FINE_UNITS = 2.0**24
"""In the encoder's unit; what the decoder rounds to integers is then next to exact."""

_LEAST_BYTES = 32
"""For coefficients, where the smallest budget that is accepted is set."""


@dataclass(frozen=True)
class TransformQuant(Quantiser):
    """Codes a batch by transforms, with one step for all coefficients.

    A DCT over each channel's map, a KLT over the channels and one over the rows;
    coefficients are coded by context (docs/splitfc-rd.md).

    Examples
    --------
    >>> ramp = torch.linspace(-1, 1, 64).repeat(4, 1)
    >>> payload = TransformQuant().encode(ramp, budget_bytes=200)
    >>> (TransformQuant().decode(memoryview(payload), 4, 64) - ramp).abs().max() < 0.05
    tensor(True)
    """

    has_quality: ClassVar[bool] = True
    default_quality: ClassVar[float | None] = AUTOMATIC

    def for_layout(self, layout: Layout) -> Quantiser:
        return _ToldQuant(layout)

    def at_step(self, step: float) -> Quantiser:
        return _ToldQuant(step=step)

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        return _ToldQuant().encode(matrix, budget_bytes)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        return _ToldQuant().decode(data, rows, columns)

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """Return bytes that leave something for coefficients beside the margins.

        Four bytes, a step of zero, are the smallest payload of all.
        """
        # margins of half a byte: the rows', and those of as many directions as
        # frequencies
        return _LEAST_BYTES + rows // 2 + isqrt(columns)


@dataclass(frozen=True)
class _ToldQuant(TransformQuant):
    """The quantiser that was told more than a budget.

    Parameters
    ----------
    layout : Layout, optional
        Of the matrices; by default each column is a channel.
    step : float, optional
        In the matrices' unit; by default the one that takes the budget.
    """

    layout: Layout | None = None
    step: float | None = None

    def for_layout(self, layout: Layout) -> Quantiser:
        return replace(self, layout=layout)

    def at_step(self, step: float) -> Quantiser:
        return replace(self, step=step)

    def _layout(self, shape: Sequence[int]) -> Layout:
        return self.layout or Layout.of(shape)

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        least, most = matrix_extremes(matrix)
        if least == most == 0:
            return ZERO_MATRIX
        unit = _power_of_two_above(max(most, -least))
        layout = self._layout(matrix.shape)
        parts = layout.split(matrix / unit)
        known = Known.NOT_NEGATIVE if least >= 0 else _known_of(parts)
        by_klts = self._by_klts(parts, layout, budget_bytes)
        reflected = _TransformedBatch(*by_klts, unit, known)
        if self.step is None:
            return reflected.payload_within(budget_bytes)
        step = self.step / unit
        batch = reflected
        if not reflected.reflections_pay(parts, layout, step):
            plain = _unreflected(parts, layout)
            batch = _TransformedBatch(*plain, unit, known)
        payload = batch.payload(max(step, batch.finest_step))
        if len(payload) > budget_bytes:
            # at a coarser step, reflections may pay
            payload = reflected.payload_within(budget_bytes)
        if batch.finest_step <= step:
            return payload
        # mostly because the KLTs made one coefficient of an offset
        others = (
            _TransformedBatch(*spread, unit, known).payload_at(step, budget_bytes)
            for spread in _offset_spread(parts.cpu(), layout)
        )
        enough = _PROMISED_STEPS * self.step
        return self._most_precise(chain([payload], others), matrix.cpu(), enough)

    def _by_klts(
        self, parts: Tensor, layout: Layout, budget_bytes: int
    ) -> tuple[Tensor, Ints, Ints]:
        """Return coefficients of (B, C, f), and reflections of channels and rows."""
        count_by_channel, count_by_row = self._reflectors(parts.shape, budget_bytes)
        by_channel = fit_reflectors(channel_samples(parts), count_by_channel)
        directions = to_directions(parts, by_channel)
        samples = row_samples(directions.flatten(1))
        by_row = fit_reflectors(samples, count_by_row)
        values = _coefficients(directions, layout, by_row)
        return values, by_channel, by_row

    def _most_precise(
        self, payloads: Iterable[bytes], matrix: Tensor, enough: float
    ) -> bytes:
        """Return the first payload with an error that is small enough, or the least."""
        best = ZERO_MATRIX
        least_error = inf
        for payload in payloads:
            seen = self.decode(memoryview(payload), *matrix.shape)
            error = root_mean_square(seen - matrix)
            if error < least_error:
                best = payload
                least_error = error
            if error <= enough:
                break
        return best

    def _reflectors(self, shape: Sequence[int], budget_bytes: int) -> tuple[int, int]:
        """Return how many reflections to send for the channels and for the rows."""
        rows, channels, places = shape
        most_by_channel = FEW_CHANNELS
        if self.step is not None:
            # fine steps are worth more directions, and the budget is only a ceiling
            most_by_channel = MANY_CHANNELS
            likely_bytes = rows * channels * places * _LIKELY_BITS // 8
            budget_bytes = min(budget_bytes, likely_bytes)
        by_channel = reflectors_worthwhile(channels, budget_bytes, most_by_channel)
        by_row = reflectors_worthwhile(rows, budget_bytes, FEW_ROWS)
        return by_channel, by_row

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        header, reader = unpack_transform(data)
        if header.step == 0:
            return torch.zeros(rows, columns, dtype=torch.float32, device="cpu")
        layout = self._layout((rows, columns))
        channels = layout.channels.count
        places = layout.places
        by_channel = read_reflectors(reader, channels, header.channel_reflectors)
        by_row = read_reflectors(reader, rows, header.row_reflectors)
        margins = read_margins(reader, rows, channels, places)
        centroids = read_centroids(reader)
        at, steps = read_coefficients(reader, margins.order())
        reader.close()

        # most coefficients are zero
        units = np.zeros(rows * channels * places)
        units[at] = reconstructed(steps, centroids)
        parts = torch.from_numpy(units).view(rows, channels, places)
        is_live = np.zeros((rows, channels), np.bool_)
        live = at // places
        is_live.ravel()[live] = True
        entries = _inverted(parts, layout, is_live, by_channel, by_row)
        if header.known is Known.CENTRED:
            entries -= channel_means(entries)
        unit = header.step / UNITS_PER_STEP
        entries.mul_(unit)
        matrix = layout.join(entries).float()
        least = -MAGNITUDE_LIMIT
        if header.known is Known.NOT_NEGATIVE:
            least = 0.0
        return matrix.clamp_(least, MAGNITUDE_LIMIT)


def _known_of(parts: Tensor) -> Known:
    """Return what is known of (B, C, f) entries of both signs."""
    means = parts.mean((0, 2)).abs()
    is_centred = means <= _CENTRED * parts.abs().mean((0, 2))
    return Known.CENTRED if bool(is_centred.all()) else Known.NOTHING


def _offset_spread(
    parts: Tensor, layout: Layout
) -> Iterator[tuple[Tensor, Ints, Ints]]:
    """Yield coefficients with an offset in a few of the rows, then with it in all."""
    rows, channels, _ = parts.shape
    is_live = np.ones((rows, channels), np.bool_)
    by_channel = no_reflectors(channels)
    for by_row in (mean_reflectors(rows), no_reflectors(rows)):
        values = _coefficients(parts, layout, by_row)
        # of a large offset, the decoder's rounded matrices would leave a large error
        in_units = (values.double() * _FINE_UNITS).round_()
        entries = _inverted(in_units, layout, is_live, by_channel, by_row)
        seen = entries / _FINE_UNITS
        missing = (parts - seen).float()
        values = values + _coefficients(missing, layout, by_row)
        yield values, by_channel, by_row


def _unreflected(parts: Tensor, layout: Layout) -> tuple[Tensor, Ints, Ints]:
    """Return coefficients of (B, C, f) without reflections, and no reflections."""
    rows, channels, _ = parts.shape
    by_row = no_reflectors(rows)
    return _coefficients(parts, layout, by_row), no_reflectors(channels), by_row


def _is_shorter(
    reflected: Tensor, own_bits: float, parts: Tensor, layout: Layout, step: float
) -> bool:
    """Tell whether coefficients and the bits of reflections are, than without these."""
    plain, *_ = _unreflected(parts, layout)
    return own_bits + estimated_bits(reflected, step) <= estimated_bits(plain, step)


def _coefficients(directions: Tensor, layout: Layout, by_row: Ints) -> Tensor:
    """Transform directions of the channels (B, C, f) along rows and maps."""
    # for the rows' transform a whole row is one place
    flat = to_directions(directions.flatten(1), by_row)
    # the range coder needs the CPU
    return to_frequencies(flat.view(directions.shape), layout.axes).cpu()


def _inverted(
    parts: Tensor, layout: Layout, is_live: Mask, by_channel: Ints, by_row: Ints
) -> Tensor:
    """Return (B, C, f) entries of coefficients, of which each live (B, C) has some."""
    rows, _, places = parts.shape
    # the others are zero until they are mixed: less to do
    live_rows = np.flatnonzero(is_live.any(1))
    live_channels = np.flatnonzero(is_live.any(0))
    parts = _picked(_picked(parts, 0, live_rows), 1, live_channels)
    parts = from_frequencies(parts, layout.axes)
    flat = from_directions(parts.flatten(1), by_row, live_rows)
    return from_directions(flat.view(rows, -1, places), by_channel, live_channels)


def _picked(parts: Tensor, dim: int, live: Ints) -> Tensor:
    """Return what is live along a dimension, without a copy if all is."""
    if len(live) == parts.shape[dim]:
        return parts
    return parts.index_select(dim, torch.from_numpy(live))


@dataclass(frozen=True, eq=False)
class _TransformedBatch:
    """A batch after its transforms, which can be packed with any step.

    Parameters
    ----------
    values : Tensor of shape (B, C, f)
        float32, on the CPU, in units of `unit`.
    by_channel, by_row : ndarrays
        The reflections of the channels and of the rows.
    unit : float
    known : Known
        Of the entries.
    """

    values: Tensor
    by_channel: Ints
    by_row: Ints
    unit: float
    known: Known

    @cached_property
    def reflections(self) -> list[Run]:
        """The reflections as symbols, which are the same with any step."""
        return [*reflector_runs(self.by_channel), *reflector_runs(self.by_row)]

    def reflections_pay(self, parts: Tensor, layout: Layout, step: float) -> bool:
        """Tell whether the reflections of (B, C, f) parts save more than they take.

        They do not where most entries are zero, or a few are far above the others:
        directions would spread these.
        """
        entries = self.by_channel.size + self.by_row.size
        if entries == 0:
            return True
        own_bits = REFLECTOR_ENTRY_BITS * entries
        # a part is quick, and may be wrong: where it says no, all are asked
        part = spread_part(self.values)
        part_of_parts = spread_part(parts)
        share = part.numel() / parts.numel()
        if _is_shorter(part, share * own_bits, part_of_parts, layout, step):
            return True
        return _is_shorter(self.values, own_bits, parts, layout, step)

    def payload_within(self, budget_bytes: int) -> bytes:
        """Return the payload with a step that takes the budget."""
        # a float32 whatever it is
        any_step = 1.0
        side_bytes = len(pack_transform(self._header(any_step), self.reflections))
        left_bits = 8 * (budget_bytes - side_bytes)
        search = estimated_search(self.values, self._largest, left_bits)
        payload = largest_payload(
            search, self.payload, self._largest, self.finest_step, budget_bytes
        )
        return payload or ZERO_MATRIX

    def payload_at(self, step: float, budget_bytes: int) -> bytes:
        """Return the payload with a step, or with the one that takes the budget."""
        payload = self.payload(max(step, self.finest_step))
        if len(payload) > budget_bytes:
            return self.payload_within(budget_bytes)
        return payload

    @cached_property
    def _largest(self) -> float:
        """The largest magnitude of the values."""
        return float(self.values.abs().max())

    @property
    def finest_step(self) -> float:
        """The least step that is sent, in the values' unit."""
        return max(self._largest / _MOST_STEPS, _LEAST_STEP / self.unit)

    def payload(self, step: float) -> bytes:
        """Return the payload with a step in the values' unit."""
        # the decoder knows the step as a float32, and takes none above its limit
        sent_step = float(np.float32(min(step * self.unit, MAGNITUDE_LIMIT)))
        rounded_step = sent_step / self.unit
        magnitudes = magnitudes_in_steps(self.values, rounded_step)
        if magnitudes.max() == 0:
            return ZERO_MATRIX
        runs = self._coefficient_runs(magnitudes, rounded_step)
        return pack_transform(self._header(sent_step), [*self.reflections, *runs])

    def _header(self, step: float) -> TransformHeader:
        channel_reflectors = self.by_channel.shape[1]
        row_reflectors = self.by_row.shape[1]
        return TransformHeader(step, channel_reflectors, row_reflectors, self.known)

    def _coefficient_runs(self, magnitudes: Tensor, step: float) -> Iterator[Run]:
        """Yield what follows the reflections."""
        margins = Margins.of(magnitudes)
        yield from margin_runs(margins)
        yield from centroid_runs(fit_centroids(self.values, magnitudes, step))
        # most coefficients are zero
        places = nonzero_places(magnitudes)
        sizes = magnitudes.numpy().ravel()[places]
        exact = self.values.numpy().ravel()[places]
        in_steps = np.copysign(sizes, exact).astype(np.int64)
        yield from coefficient_runs(places, in_steps, margins.order())


def _power_of_two_above(magnitude: float) -> float:
    """Return the unit in which the largest magnitude is 1/2 to 1."""
    _, exponent = frexp(magnitude)
    return 2.0 ** max(exponent, _LEAST_EXPONENT)
