"""The codec of models that travel: weights down, their changes up, optimizer state.

The server keeps the exact weights w and sends Q(w). A device trains from Q(w) to w' and
sends Q(w' - Q(w)), which the server adds to w. So no error of a weight is trained on
twice, and neither side depends on what the other one remembers: each message is decoded
by itself, and a device that missed rounds or a server that was started again cannot
diverge.

That is true of large arrays, whose errors are small beside what training does, and of
which a model has most entries. Biases, gains and running statistics go exactly: a
device that trains around ``Q(w)`` of a gain leaves the exact one where nobody trained.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

import numpy as np
from flwr.app import Array, ArrayRecord

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.model_arrays import (
    EXACT_BITS,
    EXACT_STYPE,
    check_bits,
    decode_array,
    encode_array,
)
from flwr_splitfc.settings import under_key

_FEW = 4096  # entries that an empty array's other sizes may be
_MOST_EXACT = 2**16
"""Entries up to which vectors and whole numbers go as they are."""


@dataclass(frozen=True)
class ModelCodec:
    """Compresses a model's arrays on their way to a device and back.

    Each setting is in bits per entry, 2 to 16, or 32 for arrays as they are. Arrays of
    fewer than 16 entries, and those that are not floats, are always sent exactly, and
    so are a model's vectors, and whole numbers, of up to 65,536 entries. The bits
    are those of Gaussian entries; what is more peaked takes fewer.

    Parameters
    ----------
    weights : int
        Of the arrays on their way down.
    changes : int
        Of what training changed, on its way up.
    state : int
        Of optimizer state, both ways.

    Examples
    --------
    >>> codec = ModelCodec.of(8)
    >>> kernel = np.sin(np.arange(1000)).reshape(20, 50)
    >>> weights = ArrayRecord({"kernel": Array(kernel)})
    >>> seen = codec.decode_weights(codec.encode_weights(weights))
    >>> error = np.abs(seen["kernel"].numpy() - kernel).max()
    >>> bool(error < 0.006)
    True
    """

    weights: int = EXACT_BITS
    changes: int = EXACT_BITS
    state: int = EXACT_BITS

    def __post_init__(self) -> None:
        for field in fields(self):
            with under_key(field.name):
                check_bits(getattr(self, field.name))

    @classmethod
    def of(cls, bits: int | ModelCodec) -> ModelCodec:
        """Return the codec with so many bits for everything, or the codec itself."""
        if isinstance(bits, ModelCodec):
            return bits
        return cls(bits, bits, bits)

    @property
    def is_exact(self) -> bool:
        """Whether arrays and their changes go as they are."""
        return self.weights == self.changes == EXACT_BITS

    def encode_weights(
        self, weights: ArrayRecord, exact: Collection[str] = ()
    ) -> ArrayRecord:
        """Encode a model for a device.

        Parameters
        ----------
        weights : ArrayRecord
        exact : collection of str
            Names of arrays that go as they are.
        """
        coded = ArrayRecord()
        for name, array in weights.items():
            values = array.numpy()
            bits = EXACT_BITS if name in exact else _bits_of(values, self.weights)
            coded[name] = encode_array(values, bits)
        return coded

    def decode_weights(self, coded: ArrayRecord) -> ArrayRecord:
        """Return the model that `encode_weights` coded, as Flower's own arrays.

        Raises
        ------
        PayloadError
            If an array is not what `encode_weights` makes.
        """
        weights = ArrayRecord()
        for name, array in coded.items():
            weights[name] = Array(decode_array(array))
        return weights

    def encode_changes(self, trained: ArrayRecord, start: ArrayRecord) -> ArrayRecord:
        """Encode a model after training, by its change where that is coded.

        Arrays that `start` has not, or in another shape, go as they are; so do short
        vectors, and all that are no floats.

        Parameters
        ----------
        trained : ArrayRecord
        start : ArrayRecord
            From `decode_weights`.
        """
        coded = ArrayRecord()
        for name, array in trained.items():
            coded[name] = self._encode_change(array.numpy(), start.get(name))
        return coded

    def _encode_change(self, trained: np.ndarray, start: Array | None) -> Array:
        if start is not None and _has_change(trained, start):
            # of a mask's infinities there is none, and then the array goes as it is
            with np.errstate(invalid="ignore", over="ignore"):
                change = trained - start.numpy()
            coded = encode_array(change, _bits_of(change, self.changes))
            if coded.stype != EXACT_STYPE:
                return coded
        return encode_array(trained, EXACT_BITS)

    def decode_changes(
        self, coded: ArrayRecord, weights: ArrayRecord, exact: Collection[str] = ()
    ) -> ArrayRecord:
        """Return the exact weights with the changes of a device, as Flower's arrays.

        Parameters
        ----------
        coded : ArrayRecord
            From the wire.
        weights : ArrayRecord
        exact : collection of str
            What `encode_weights` was given.

        Raises
        ------
        PayloadError
            If an array is not what `encode_changes` makes of these weights.
        """
        trained = ArrayRecord()
        for name, array in coded.items():
            start = weights.get(name)
            if array.stype == EXACT_STYPE:
                # it may have another type than the weights, which averages make floats
                most_entries = max(len(array.data), _FEW)
                values = decode_array(array, max_entries=most_entries)
                if name not in exact:
                    values = self._from_exact(values, start)
                trained[name] = Array(values)
            else:
                trained[name] = _changed(name, array, start)
        return trained

    def _from_exact(self, trained: np.ndarray, weights: Array | None) -> np.ndarray:
        """Return the trained array as if the device had begun from exact weights."""
        if weights is None or not _has_change(trained, weights):
            return trained
        exact = weights.numpy()
        bits = _bits_of(exact, self.weights)
        if bits == EXACT_BITS:
            return trained
        start = decode_array(encode_array(exact, bits))
        if np.array_equal(start, exact, equal_nan=True):
            return trained
        with np.errstate(over="ignore"):
            joined: np.ndarray = exact + (trained - start)
        return joined


def _changed(name: str, coded: Array, weights: Array | None) -> Array:
    """Return the weights with a coded change."""
    if weights is None:
        raise PayloadError(f"{name!r:.100} is no array of the model")
    change = decode_array(coded, shape=weights.shape, dtype=weights.dtype)
    with np.errstate(over="ignore"):
        return Array(weights.numpy() + change)


def _bits_of(values: np.ndarray, bits: int) -> int:
    """Return the bits of an array where the others have `bits`."""
    # zeros take no bytes, at any bits but 32
    if values.size > _MOST_EXACT or not values.any():
        return bits
    is_vector = sum(size > 1 for size in values.shape) <= 1
    return EXACT_BITS if is_vector or _is_whole(values) else bits


def _is_whole(values: np.ndarray) -> bool:
    """Whether all entries are whole numbers, as those of masks are."""
    with np.errstate(invalid="ignore"):
        return bool(np.all(np.rint(values) == values))


def _has_change(trained: np.ndarray, start: Array) -> bool:
    """Whether the difference of two arrays is one that a device can send."""
    same_form = (trained.shape, str(trained.dtype)) == (start.shape, start.dtype)
    return same_form and np.issubdtype(trained.dtype, np.floating)
