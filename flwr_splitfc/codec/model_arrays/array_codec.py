"""Arrays of models and optimizers to Flower arrays and back, at a number of bits.

The sender chooses one of four byte formats by the content, and the stype names it:

====================  ================================================================
``array-exact/1``     the entries themselves: at 32 bits; other types than float16 to
                      float64; fewer than 16 entries; NaN or infinity among them; and
                      wherever a code is not shorter
``array-log/1``       of an optimizer's state: no entry is negative, and not all are
                      zero: `octave_steps`
``array-levelled/1``  columns of very different scales: `column_levels`, `even_steps`
``array-uniform/1``   all others: `even_steps`
====================  ================================================================

Weights of normalisation and running variances are never negative, either. They are no
moments: what matters of them is how far they are off, as of all that a model has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, TypeAlias

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import allocated_entries, view
from flwr_splitfc.codec.model_arrays.column_levels import fit_levels, unpack_levels
from flwr_splitfc.codec.model_arrays.even_steps import (
    pack_even_steps,
    unpack_even_steps,
)
from flwr_splitfc.codec.model_arrays.exact_entries import (
    pack_exact_entries,
    unpack_exact_entries,
)
from flwr_splitfc.codec.model_arrays.octave_steps import (
    pack_octave_steps,
    unpack_octave_steps,
)
from flwr_splitfc.codec.subnormals import with_subnormals

EXACT_BITS = 32
"""Bits at which every array comes back bit for bit."""

LEAST_BITS = 2
MOST_BITS = 16

EXACT_STYPE = "array-exact/1"
"""Of arrays that are sent as they are."""

_UNIFORM = "array-uniform/1"
_LOG = "array-log/1"
_LEVELLED = "array-levelled/1"

STYPES = (EXACT_STYPE, _UNIFORM, _LOG, _LEVELLED)
"""What `decode_array` reads."""

CODED_DTYPES = ("float16", "float32", "float64")
"""Types that are coded; others are exact."""

ARRAY_DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    *CODED_DTYPES,
    "complex64",
    "complex128",
)
"""Types that arrays may have."""

_FEWEST_CODED_ENTRIES = 16

_MOST_DIMENSIONS = 32

_MOST_SIZE = 2**31 - 1

_MOST_UNCHECKED_ENTRIES = 2**28
"""Entries of an array of which the receiver knows nothing: 1 GiB as float32."""

_Coded: TypeAlias = tuple[str, bytes]
"""The stype and the payload."""

_Code: TypeAlias = Callable[[NDArray[Any], int], _Coded | None]
"""Codes an array of finite floats at a number of bits; None where it cannot."""


# Writing


@with_subnormals
def encode_array(values: NDArray[np.generic], bits: int) -> Array:
    """Encode an array of a model, or the change of one.

    Floats take about so many bits an entry if they are Gaussian and fewer if they are
    more peaked. Coded entries are off by half a step at most, the step being ``rms *
    2^(2 - bits)``; where columns are of very different scales, each has about the step
    of its own rms. What is too small to be worth it, no float, or not finite, comes
    back exactly. The sign of a zero may be lost otherwise.

    Parameters
    ----------
    values : ndarray
        Of any shape; bool, integers to 64 bits, float16 to float64 or complex.
    bits : int
        2 to 16, or 32, at which every array comes back bit for bit.

    Returns
    -------
    Array
        With the dtype and shape of `values`; its stype is one of `STYPES`.

    Raises
    ------
    ValueError
        If bits or the type are none of these, or there are more than 32 dimensions.

    Examples
    --------
    >>> weights = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    >>> array = encode_array(weights, bits=4)
    >>> array.stype, array.shape, len(array.data)
    ('array-uniform/1', (32, 64), 1058)
    >>> decode_array(array).shape
    (32, 64)
    """
    return _encoded(values, bits, _in_even_steps)


@with_subnormals
def encode_state(
    values: NDArray[np.generic], bits: int, draw: np.random.Generator
) -> Array:
    """Encode an array of an optimizer's state, right on average.

    Each entry becomes one of the two coded values around it, at random. Entries of both
    signs are off by less than a step, the step being ``rms * 2^(2 - bits)``, and become
    0 below half a step. Arrays without negative entries, such as second moments, are
    coded by ratio: entries are off by a factor of less than ``2^(2^(4 - bits))``, and
    zeros stay zeros. Otherwise it is as `encode_array`.

    Parameters
    ----------
    values : ndarray
    bits : int
    draw : numpy.random.Generator
        The source of all randomness.

    Returns
    -------
    Array

    Raises
    ------
    ValueError

    Examples
    --------
    >>> moments = np.full(1000, 0.7)
    >>> array = encode_state(moments, bits=4, draw=np.random.default_rng(0))
    >>> seen = decode_array(array)
    >>> np.unique(seen).tolist(), seen.mean().round(1).item()
    ([0.5, 1.0], 0.7)
    """
    return _encoded(values, bits, partial(_coded_state, draw=draw))


def _encoded(values: NDArray[np.generic], bits: int, code: _Code) -> Array:
    check_bits(bits)
    dtype = values.dtype.name
    if dtype not in ARRAY_DTYPES:
        known = ", ".join(ARRAY_DTYPES)
        raise ValueError(f"an array must be one of {known}, got {dtype}")
    if values.ndim > _MOST_DIMENSIONS:
        raise ValueError(
            f"at most {_MOST_DIMENSIONS} dimensions can be sent, got {values.ndim}"
        )
    entries = values.reshape(-1)
    coded = code(values, bits) if _is_worth_coding(entries, bits) else None
    if coded is None or len(coded[1]) >= entries.nbytes:
        coded = EXACT_STYPE, pack_exact_entries(entries)
    stype, payload = coded
    return Array(dtype=dtype, shape=values.shape, stype=stype, data=payload)


def check_bits(bits: int) -> None:
    """Raise `ValueError` unless `encode_array` takes these bits."""
    if bits != EXACT_BITS and bits not in range(LEAST_BITS, MOST_BITS + 1):
        raise ValueError(
            f"bits must be {LEAST_BITS} to {MOST_BITS}, or {EXACT_BITS}, "
            f"got {bits!r:.40}"
        )


def _is_worth_coding(entries: NDArray[Any], bits: int) -> bool:
    if bits == EXACT_BITS or entries.dtype.name not in CODED_DTYPES:
        return False
    if len(entries) < _FEWEST_CODED_ENTRIES:
        return False
    # NaN is both then
    return bool(np.isfinite(entries.min()) and np.isfinite(entries.max()))


def _coded_state(
    values: NDArray[Any], bits: int, draw: np.random.Generator
) -> _Coded | None:
    if values.min() >= 0 and values.any():
        return _LOG, pack_octave_steps(values.reshape(-1), bits, draw)
    return _in_even_steps(values, bits, draw)


def _in_even_steps(
    values: NDArray[Any], bits: int, draw: np.random.Generator | None = None
) -> _Coded | None:
    """Return stype and payload; None where float32 has no step that fits."""
    levels = fit_levels(values)
    payload = pack_even_steps(values.reshape(-1), bits, draw, levels)
    if payload is None:
        return None
    if levels is None:
        return _UNIFORM, payload
    return _LEVELLED, levels.pack() + payload


# Reading


@with_subnormals
def decode_array(
    array: Array,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: str | None = None,
    max_entries: int | None = None,
) -> NDArray[np.generic]:
    """Decode what `encode_array` or `encode_state` made.

    Parameters
    ----------
    array : Array
        From the wire; nothing in it is trusted.
    shape, dtype : optional
        What the array must have, where the receiver knows it.
    max_entries : int, optional
        Most entries that are allocated; a dimension of size 0 counts as one of size 1.
        2^28 if neither this nor `shape` is given.

    Returns
    -------
    ndarray
        Of the array's dtype and shape, and of its own memory.

    Raises
    ------
    PayloadError
        If dtype, shape or stype are not as wanted, there are more entries than that, or
        the data is not a payload of the stype.
    """
    _check_fields(array)
    if dtype is not None and array.dtype != dtype:
        raise PayloadError(f"dtype is {array.dtype}; {dtype} was wanted")
    if shape is not None and array.shape != shape:
        raise PayloadError(f"shape is {array.shape}; {shape} was wanted")
    if shape is None and max_entries is None:
        max_entries = _MOST_UNCHECKED_ENTRIES
    if max_entries is not None:
        _check_entries(array.shape, max_entries)
    payload = view(array.data)
    count = prod(array.shape)
    if array.stype == EXACT_STYPE:
        return unpack_exact_entries(payload, count, array.dtype).reshape(array.shape)
    if count < _FEWEST_CODED_ENTRIES or array.dtype not in CODED_DTYPES:
        raise PayloadError(
            f"{count} entries of {array.dtype} are coded as {array.stype}; "
            f"{_FEWEST_CODED_ENTRIES} floats or more were wanted"
        )
    entries = np.empty(count, array.dtype)
    if array.stype == _LOG:
        unpack_octave_steps(payload, entries)
    elif array.stype == _UNIFORM:
        unpack_even_steps(payload, entries)
    else:
        levels, payload = unpack_levels(payload, array.shape)
        unpack_even_steps(payload, entries, levels)
    return entries.reshape(array.shape)


def _check_fields(array: Array) -> None:
    """Check that dtype, shape and stype are ones that an encoder makes."""
    if array.stype not in STYPES:
        raise PayloadError(f"stype is {array.stype!r:.100}; one of {STYPES} was wanted")
    if array.dtype not in ARRAY_DTYPES:
        known = ", ".join(ARRAY_DTYPES)
        raise PayloadError(f"dtype is {array.dtype!r:.100}; one of {known} was wanted")
    sizes = array.shape
    if not isinstance(sizes, tuple) or len(sizes) > _MOST_DIMENSIONS:
        raise PayloadError(f"shape is not a tuple of at most {_MOST_DIMENSIONS} sizes")
    if not all(_is_size(size) for size in sizes):
        raise PayloadError(f"shape {sizes!r:.200} is not one of sizes")


def _is_size(size: object) -> bool:
    # A bool is an int to `isinstance`.
    return type(size) is int and 0 <= size <= _MOST_SIZE


def _check_entries(shape: tuple[int, ...], max_entries: int) -> None:
    if allocated_entries(shape) > max_entries:
        raise PayloadError(
            f"array has shape {shape}; at most {max_entries} entries were wanted"
        )
