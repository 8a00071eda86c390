"""Payloads and what they decode to do not depend on how a thread treats subnormals.

``torch.set_flush_denormal(True)`` is a usual way to keep an optimizer fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec import codec_names, cut_codec
from flwr_splitfc.codec.model_arrays import decode_array, encode_array
from tests.codec.model_arrays.test_array_codec import encode_drawn

ROWS, COLUMNS = 32, 96
BITS = 6.0
MASK_BITS = 16.0  # of the mask alone
DECADES = (-44.0, 2.0)

pytestmark = pytest.mark.skipif(
    not torch.set_flush_denormal(False), reason="this processor cannot flush them"
)


@contextmanager
def flushed(flush: bool) -> Iterator[None]:
    torch.set_flush_denormal(flush)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def is_flushed() -> bool:
    smallest = torch.finfo(torch.float32).tiny
    return float(torch.tensor(smallest) / 2) == 0


def all_subnormal(draw: np.random.Generator) -> NDArray[np.float64]:
    return draw.standard_normal((ROWS, COLUMNS)) * 1e-40


def some_subnormal(draw: np.random.Generator) -> NDArray[np.float64]:
    matrix = np.maximum(draw.standard_normal((ROWS, COLUMNS)), 0)
    return np.where(draw.random((ROWS, COLUMNS)) < 0.3, 1e-42, matrix)


def columns_over_decades(draw: np.random.Generator) -> NDArray[np.float64]:
    scales = 10 ** draw.uniform(*DECADES, (1, COLUMNS))
    return draw.standard_normal((ROWS, COLUMNS)) * scales


def rows_over_decades(draw: np.random.Generator) -> NDArray[np.float64]:
    scales = 10 ** draw.uniform(*DECADES, (ROWS, 1))
    return np.maximum(draw.standard_normal((ROWS, COLUMNS)), 0) * scales


Matrices = Callable[[np.random.Generator], NDArray[np.float64]]

MATRICES = [all_subnormal, some_subnormal, columns_over_decades, rows_over_decades]


def made(matrices: Matrices) -> Tensor:
    return torch.from_numpy(matrices(np.random.default_rng(0)).astype(np.float32))


def whole_step(name: str, features: Tensor, device: bool, server: bool) -> list[bytes]:
    """Return what goes over the wire and what comes of it, of a step in these modes."""
    bits = MASK_BITS if name == "mask-encoded" else BITS
    codec = cut_codec(name, uplink_bits=bits, downlink_bits=bits)
    generator = torch.Generator().manual_seed(0)
    with flushed(device):
        up, link = codec.encode_features(features, generator=generator)
    with flushed(server):
        seen, server_link = codec.decode_features(up, expect=(ROWS, COLUMNS))
        down = codec.encode_gradient(features, server_link)
    with flushed(device):
        gradient = codec.decode_gradient(down, link)
    return [up.data, seen.numpy().tobytes(), down.data, gradient.numpy().tobytes()]


@pytest.mark.parametrize("matrices", MATRICES)
@pytest.mark.parametrize("name", codec_names())
def test_a_step_is_the_same_in_all_modes(name: str, matrices: Matrices) -> None:
    features = made(matrices)
    usual = whole_step(name, features, device=False, server=False)
    for device, server in product((False, True), repeat=2):
        assert whole_step(name, features, device, server) == usual


@pytest.mark.parametrize("matrices", MATRICES)
@pytest.mark.parametrize("bits", [4, 32])
def test_arrays_are_the_same_in_all_modes(bits: int, matrices: Matrices) -> None:
    changes = matrices(np.random.default_rng(0)).astype(np.float32)
    for values, encode in product(
        (changes, abs(changes)), (encode_array, encode_drawn)
    ):
        coded = encode(values, bits)
        decoded = decode_array(coded).tobytes()
        with flushed(True):
            assert encode(values, bits).data == coded.data
            assert decode_array(coded).tobytes() == decoded


def test_the_thread_stays_as_it_was() -> None:
    codec = cut_codec("float32")
    for flush in (False, True):
        with flushed(flush):
            codec.encode_features(torch.ones(2, 3))
            assert is_flushed() == flush
            with pytest.raises(ValueError, match="NaN"):
                codec.encode_features(torch.full((2, 3), torch.nan))
            assert is_flushed() == flush
