"""Codecs do not depend on torch's default dtype, nor on its default device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from flwr_splitfc.codec import codec_names
from tests.codec.cuts import affordable_cut

# sides of maps that other tests do not have: nothing is kept from before the defaults
SHAPE = (16, 2, 13, 11)
ROWS, COLUMNS = 16, 286


@contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device() -> Iterator[None]:
    # stands for any that is not the CPU: what is made there cannot be used
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def step(name: str, features: Tensor) -> tuple[bytes, Tensor, bytes, Tensor]:
    """Send features up and the same matrix down as their gradient."""
    cut = affordable_cut(name, ROWS, COLUMNS, 3.0, 3.0)
    generator = torch.Generator("cpu").manual_seed(1)
    up, link = cut.encode_features(features, generator=generator)
    seen, server_link = cut.decode_features(up, expect=(ROWS, COLUMNS))
    down = cut.encode_gradient(features, server_link)
    return up.data, seen, down.data, cut.decode_gradient(down, link)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("defaults", [default_device, default_dtype])
@pytest.mark.parametrize("name", codec_names())
def test_defaults_change_nothing(name: str, defaults: object, scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    features = scale * torch.randn(SHAPE, generator=draw)
    assert callable(defaults)
    with defaults():
        up, seen, down, back = step(name, features)
    plain_up, plain_seen, plain_down, plain_back = step(name, features)
    assert (up, down) == (plain_up, plain_down)
    for decoded, plain in ((seen, plain_seen), (back, plain_back)):
        assert decoded.dtype == torch.float32
        assert decoded.device.type == "cpu"
        assert torch.equal(decoded, plain)
