"""A model on its way: what is coded, what goes exactly, and what comes of changes."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from flwr_splitfc import ModelCodec
from tests import fixture

CODEC = ModelCodec.of(4)
DRAW = np.random.default_rng(0)
NORMALISED = {
    "kernel": DRAW.normal(size=(32, 32)).astype(np.float32),
    "gain": DRAW.uniform(0.7, 1.4, 32).astype(np.float32),
    "bias": DRAW.normal(size=32).astype(np.float32),
    "running_var": DRAW.uniform(0.1, 9, 32).astype(np.float32),
    "temperature": np.float32(0.7),
}
"""As of a convolution and a BatchNorm after it."""

VECTORS = ["gain", "bias", "running_var", "temperature"]


def record(arrays: dict[str, NDArray[np.float32]]) -> ArrayRecord:
    return ArrayRecord(
        {name: Array(np.asarray(values)) for name, values in arrays.items()}
    )


def seen_by_a_device(weights: ArrayRecord) -> ArrayRecord:
    return CODEC.decode_weights(CODEC.encode_weights(weights))


def trained(start: ArrayRecord, by: float) -> ArrayRecord:
    arrays = {name: array.numpy() for name, array in start.items()}
    return record(
        {name: np.asarray(values + np.float32(by)) for name, values in arrays.items()}
    )


def test_short_vectors_go_exactly_in_both_directions() -> None:
    """So the model that is saved has the gains with which it was trained."""
    exact = record(NORMALISED)
    start = seen_by_a_device(exact)
    after = trained(start, by=0.1)
    joined = CODEC.decode_changes(CODEC.encode_changes(after, start), exact)
    for name in VECTORS:
        np.testing.assert_array_equal(start[name].numpy(), exact[name].numpy())
        np.testing.assert_array_equal(joined[name].numpy(), after[name].numpy())
    assert np.abs(start["kernel"].numpy() - NORMALISED["kernel"]).max() > 0.1


@pytest.mark.parametrize("by", [0.0, 0.1])
def test_what_did_not_change_takes_no_bytes(by: float) -> None:
    start = seen_by_a_device(record(NORMALISED))
    coded = CODEC.encode_changes(trained(start, by), start)
    for name in ("kernel", "gain", "bias", "running_var"):
        assert (len(coded[name].data) == 0) == (by == 0)
    joined = CODEC.decode_changes(coded, record(NORMALISED))
    for name in VECTORS:
        after = trained(start, by)[name].numpy()
        np.testing.assert_array_equal(joined[name].numpy(), after)


@pytest.mark.parametrize(("entries", "is_coded"), [(2**16, False), (2**16 + 1, True)])
def test_long_vectors_are_coded(entries: int, is_coded: bool) -> None:
    flat = record({"flat": DRAW.normal(size=entries).astype(np.float32)})
    (array,) = CODEC.encode_weights(flat).values()
    assert (array.stype == "array-uniform/1") == is_coded
    start = seen_by_a_device(flat)
    (array,) = CODEC.encode_changes(trained(start, by=1.0), start).values()
    assert (array.stype == "array-uniform/1") == is_coded


@pytest.mark.parametrize("shape", [(1, 32, 1), (32, 1), (1, 1, 1, 32)])
def test_arrays_with_one_size_above_one_are_vectors(shape: tuple[int, ...]) -> None:
    """A half may divide by a buffer like that, of sensors in units of their own."""
    units = np.geomspace(1e-3, 1e3, 32).reshape(shape)
    start = seen_by_a_device(record({"std": units}))
    np.testing.assert_array_equal(start["std"].numpy(), units)


def test_exact_changes_are_added_to_the_exact_weights() -> None:
    """Else each turn would go on from coded weights, where small changes are lost."""
    codec = ModelCodec(weights=4)
    weights = record(NORMALISED)
    for _ in range(20):
        start = codec.decode_weights(codec.encode_weights(weights))
        after = trained(start, by=0.01)
        weights = codec.decode_changes(codec.encode_changes(after, start), weights)
    for name, array in weights.items():
        change = array.numpy() - NORMALISED[name]
        np.testing.assert_allclose(change, 0.2, atol=1e-5)


def test_vectors_that_earlier_versions_coded_are_decoded() -> None:
    """A device trains from what it got, and sends what it then has."""
    vector = next(v for v in fixture.array_vectors() if v.name == "two-octaves")
    assert vector.stype == "array-log/1"
    coded = ArrayRecord({"running_var": vector.array()})
    start = CODEC.decode_weights(coded)
    got = np.frombuffer(vector.decoded, vector.dtype).reshape(vector.shape)
    np.testing.assert_array_equal(start["running_var"].numpy(), got)
    changes = ArrayRecord({"running_var": vector.array()})
    (after,) = CODEC.decode_changes(changes, start).values()
    np.testing.assert_array_equal(after.numpy(), got + got)
