"""Channels of very different scales are brought to one, where it matters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec, Link, cut_codec
from flwr_splitfc.codec.quality import lost_columns

# by channel
SCALES = torch.tensor([1000.0, 1.0, 0.1, 10.0])


def features_of(shape: tuple[int, ...], channel_dim: int) -> Tensor:
    """Features of channels of very different scales, at most four."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    view = [1] * len(shape)
    view[channel_dim] = -1
    return noise * SCALES[: shape[channel_dim]].view(view)


def sent(
    cut: CutCodec, features: Tensor, levelled: bool | None = None
) -> tuple[Tensor, int, Link, Link]:
    """What the server sees, the bytes, and both links."""
    array, link = cut.encode_features(features, levelled=levelled)
    seen, server_link = cut.decode_features(
        array, expect=(len(features), features[0].numel())
    )
    return seen, len(array.data), link, server_link


SHAPES = [
    ((64, 4), 1),
    ((64, 4, 3, 2), 1),
    ((64, 5, 4), 2),
    # of a signal, and with the channel last
    ((64, 4, 5), 1),
    ((64, 3, 2, 4), 3),
]


@pytest.mark.parametrize(("shape", "channel_dim"), SHAPES)
def test_levelled_every_channel_is_as_precise_as_the_largest(
    shape: tuple[int, ...], channel_dim: int
) -> None:
    cut, features = cut_codec("splitfc-rd", quality=20), features_of(shape, channel_dim)
    exact = features.flatten(1)
    plain, *_ = sent(cut, features, levelled=False)
    assert lost_columns(exact, plain) >= 0.5
    levelled, *_ = sent(cut, features, levelled=True)
    for column in range(exact.shape[1]):
        error = levelled[:, column] - exact[:, column]
        assert error.square().mean() < 0.1 * exact[:, column].var()


def test_edges_that_do_not_vary_do_not_hide_the_channels() -> None:
    cut, features = cut_codec("splitfc-rd", quality=20), features_of((64, 4, 3, 12), 1)
    features[..., 3:] = 0
    *_, link, _ = sent(cut, features, levelled=True)
    assert link.exponents is not None
    assert len(link.exponents) == 4
    gradient = torch.randn(features.shape, generator=torch.Generator().manual_seed(4))
    by_channel = gradient / SCALES.view(1, -1, 1, 1)
    assert cut.needs_levels(features, by_channel, link) is True


@pytest.mark.parametrize(("shape", "channel_dim"), SHAPES)
@pytest.mark.parametrize("power", [-1, 0, 1])
def test_gradients_of_levelled_features_are_levelled_by_scales_of_their_own(
    shape: tuple[int, ...], channel_dim: int, power: int
) -> None:
    """They may be as even as behind no normalisation, or as uneven as behind one."""
    cut, features = cut_codec("splitfc-rd", quality=20), features_of(shape, channel_dim)
    *_, link, server_link = sent(cut, features, levelled=True)
    view = [1] * len(shape)
    view[channel_dim] = -1
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    gradient = noise * SCALES.view(view) ** power
    array = cut.encode_gradient(gradient, server_link)
    decoded = cut.decode_gradient(array, link)
    assert torch.equal(decoded, cut.decode_gradient(array, server_link))
    # in one column of few entries chance is large
    by_channel = (decoded.view(shape) - gradient).movedim(channel_dim, 0).flatten(1)
    exact = gradient.movedim(channel_dim, 0).flatten(1)
    assert (by_channel.square().mean(1) < 0.3 * exact.square().mean(1)).all()


def test_gradients_of_other_features_are_not_levelled() -> None:
    cut, features = cut_codec("splitfc-rd", quality=20), features_of((64, 4), 1)
    *_, link, server_link = sent(cut, features, levelled=False)
    gradient = features_of((64, 4), 1) / SCALES.square()
    array = cut.encode_gradient(gradient, server_link)
    # of the largest channel, which has the smallest gradient
    assert not cut.decode_gradient(array, link)[:, 0].any()


def test_channels_of_one_scale_take_the_same_bytes() -> None:
    cut = cut_codec("splitfc-rd", quality=20)
    features = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
    plain, plain_bytes, *_ = sent(cut, features, levelled=False)
    levelled, levelled_bytes, *_ = sent(cut, features, levelled=True)
    assert levelled_bytes == plain_bytes
    assert torch.equal(plain, levelled)


def test_the_gradient_by_what_does_not_vary_does_not_drown_the_others() -> None:
    """A BatchNorm's is 1 / sqrt(eps) times as large there."""
    cut = cut_codec("splitfc-rd")
    features = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
    features[:, 4:] = 0
    gradient = torch.randn(64, 6, generator=torch.Generator().manual_seed(4))
    gradient[:, 4:] *= 316
    *_, link, server_link = sent(cut, features)
    assert cut.needs_levels(features, gradient, link) is True
    for levelled, arrives in ((False, False), (True, True)):
        *_, link, server_link = sent(cut, features, levelled=levelled)
        decoded = cut.decode_gradient(cut.encode_gradient(gradient, server_link), link)
        error = (decoded - gradient)[:, :4].square().mean()
        assert bool(error < 0.3 * gradient[:, :4].square().mean()) is arrives


@pytest.mark.parametrize("shape", [(32, 6), (32, 6, 2, 2)])
def test_a_gradient_that_sums_to_zero_does_so_when_it_is_decoded(
    shape: tuple[int, ...],
) -> None:
    """As a BatchNorm's does; its error would add up in the biases before it."""
    cut = cut_codec("splitfc-rd")
    draw = torch.Generator().manual_seed(4)
    features = torch.randn(shape, generator=draw)
    *_, link, server_link = sent(cut, features, levelled=False)
    over = tuple(dim for dim in range(len(shape)) if dim != 1)
    gradient = torch.randn(shape, generator=draw)
    sums_to_zero = gradient - gradient.mean(over, keepdim=True)
    for exact, is_zero in ((sums_to_zero, True), (gradient, False)):
        decoded = cut.decode_gradient(cut.encode_gradient(exact, server_link), link)
        means = decoded.view(shape).mean(over)
        assert bool(means.abs().max() < 1e-3) is is_zero
        assert (decoded - exact.flatten(1)).square().mean() < 0.1


def test_the_servers_output_is_not_levelled() -> None:
    """No gradient has told of it, and none will."""
    cut = cut_codec("splitfc-rd").mirror()
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    features[:, 0] *= 1e4
    assert sent(cut, features)[2].exponents is None


def test_predictions_are_levelled_where_most_would_be_lost() -> None:
    cut = cut_codec("splitfc-rd", quality=20, evaluation="codec")
    features = features_of((64, 4), 1)
    array, _ = cut.encode_features(features, training=False)
    seen, _ = cut.decode_features(array, expect=(64, 4))
    assert lost_columns(features, seen) == 0


def test_before_a_gradient_tells_only_what_would_vanish_is_levelled() -> None:
    cut = cut_codec("splitfc-rd")
    draw = torch.Generator().manual_seed(3)
    vanishing = torch.randn(64, 8, generator=draw)
    vanishing[:, 0] *= 1e4
    differing = torch.randn(64, 8, generator=draw) * torch.logspace(0, 1, 8)
    assert sent(cut, vanishing)[2].exponents is not None
    assert sent(cut, differing)[2].exponents is None


def test_the_gradient_tells_whether_small_channels_matter() -> None:
    cut, features = cut_codec("splitfc-rd"), features_of((64, 4), 1)
    *_, link, _ = sent(cut, features)
    noise = torch.randn(64, 4, generator=torch.Generator().manual_seed(4))
    # of a server half that normalises, and of one that takes features as they are
    assert cut.needs_levels(features, noise / SCALES, link) is True
    assert cut.needs_levels(features, noise, link) is False
    assert cut.needs_levels(features, 0 * noise, link) is None


@pytest.mark.parametrize("name", ["splitfc", "quant-only", "float32"])
def test_other_codecs_level_nothing(name: str) -> None:
    cut, features = cut_codec(name, uplink_bits=8.0), features_of((64, 4), 1)
    *_, link, _ = sent(cut, features, levelled=True)
    assert link.exponents is None
    assert cut.needs_levels(features, features, link) is None


def test_budgets_and_ceilings_hold() -> None:
    """A budget levels nothing, and a ceiling leaves it out where it has no room."""
    features = features_of((64, 4, 3, 2), 1)
    budget = cut_codec("splitfc-rd", uplink_bits=2.0)
    assert sent(budget, features, levelled=True)[2].exponents is None
    for bits in (0.5, 1.0, 2.0):
        budgets = {"uplink_bits": bits, "downlink_bits": bits}
        ceiling = cut_codec("splitfc-rd", quality=40, **budgets)
        _, taken, *_, link = sent(ceiling, features, levelled=True)
        assert taken <= bits * features.numel() / 8
        array = ceiling.encode_gradient(features, link)
        assert len(array.data) <= bits * features.numel() / 8


def test_nothing_is_levelled_where_the_gradient_has_no_room_for_its_levels() -> None:
    features = features_of((16, 4), 1)
    _, least = cut_codec("splitfc-rd").smallest_bits(16, 4)
    for downlink_bits, has_room in ((least, False), (least + 1.0, True)):
        cut = cut_codec("splitfc-rd", quality=20, downlink_bits=downlink_bits)
        *_, link = sent(cut, features, levelled=True)
        assert (link.exponents is not None) is has_room
        array = cut.encode_gradient(features, link)
        assert len(array.data) <= downlink_bits * features.numel() / 8


def test_levels_of_a_gradient_are_checked() -> None:
    cut, features = cut_codec("splitfc-rd", quality=20), features_of((64, 3), 1)
    *_, link, server_link = sent(cut, features, levelled=True)
    array = cut.encode_gradient(features, server_link)
    octets = bytearray(array.data)
    octets[1] |= 0xF0
    for data in (bytes(octets), array.data[:1]):
        with pytest.raises(ValueError, match="exponent"):
            cut.decode_gradient(replace(array, data=data), link)
