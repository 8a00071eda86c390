"""Which columns share a channel."""

from __future__ import annotations

import pytest
import torch

from flwr_splitfc.codec.channels import Channels


def test_channel_dimension_by_shape() -> None:
    assert Channels.of((2, 3, 4, 5)) == Channels(1, 3, 20)
    assert Channels.of((2, 7, 3)) == Channels(7, 3, 1)
    assert Channels.of((2, 12)) == Channels(1, 12, 1)
    assert Channels.of((2, 12), channels=4) == Channels(1, 4, 3)
    assert Channels.of((2, 7, 3), dim=1) == Channels(1, 7, 3)
    assert Channels.of((2, 4, 5, 3), dim=-1) == Channels(20, 3, 1)


@pytest.mark.parametrize("dim", [None, 1, 2, -1])
def test_spans_match_the_obvious_way(dim: int | None) -> None:
    features = torch.randn(6, 4, 3, 5, dtype=torch.float64)
    position = 1 if dim is None else dim % 4
    others = [axis for axis in range(4) if axis != position]
    span = features.amax(others, keepdim=True) - features.amin(others, keepdim=True)
    flat = features.flatten(1)
    spans = Channels.of(features.shape, dim=dim).spans(flat.amin(0), flat.amax(0))
    torch.testing.assert_close(spans, span.expand(1, 4, 3, 5).flatten())


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="channels=5 does not divide 12"):
        Channels.of((2, 12), channels=5)
    with pytest.raises(ValueError, match="channels=4, but dimension 1"):
        Channels.of((2, 3, 4, 4), channels=4)
    with pytest.raises(ValueError, match="channel_dim 4 is not"):
        Channels.of((2, 3, 4, 4), dim=4)
