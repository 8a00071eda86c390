"""Transform coding: budgets are met and used, and what is smooth, correlated or sparse costs little."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flwr_splitfc.codec import cut_codec
from flwr_splitfc.codec.channels import Layout
from flwr_splitfc.codec.quality import feature_error
from flwr_splitfc.codec.quantisers.transform import transform_quant
from flwr_splitfc.codec.quantisers.transform.transform_quant import TransformQuant
from tests.codec import independent_decoder as independent


def smooth_maps(rows: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """Correlated channels of smooth maps after a ReLU."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(rows, channels // 4, 3, 3, generator=draw)
    mixed = torch.einsum(
        "bchw,dc->bdhw", coarse, torch.randn(channels, channels // 4, generator=draw)
    )
    return torch.nn.functional.interpolate(mixed, (side, side), mode="bilinear").relu()


def sent_error(features: Tensor, bits: float, **settings: float) -> float:
    """Relative squared error of the rows that are sent."""
    cut = cut_codec("splitfc-rd", uplink_bits=bits, **settings)
    array, link = cut.encode_features(
        features, generator=torch.Generator().manual_seed(0)
    )
    seen, _ = cut.decode_features(array, expect=(len(features), features[0].numel()))
    sent = link.sent_rows(features.flatten(1))
    return float((link.sent_rows(seen) - sent).square().sum() / sent.square().sum())


@pytest.mark.parametrize("bits", [0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(64, 16, 8, 8), (64, 1024), (40, 30, 24)])
def test_budgets_are_met_and_used(shape: tuple[int, ...], bits: float) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(3)).relu()
    quantiser = TransformQuant().for_layout(Layout.of(shape))
    budget_bytes = int(features.numel() * bits) // 8
    used = len(quantiser.encode(features.flatten(1), budget_bytes))
    assert 0.9 * budget_bytes <= used <= budget_bytes


def test_more_bits_are_more_precise() -> None:
    features = smooth_maps(64, 16, 8)
    errors = [sent_error(features, bits) for bits in (0.05, 0.1, 0.2, 0.4, 0.8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 5


def test_structure_pays() -> None:
    """The same values, with their channels or their maps taken apart, cost more."""
    features = smooth_maps(64, 16, 8)
    shuffled = features.flatten(1)[:, torch.randperm(1024)].view_as(features)
    assert sent_error(features, 0.2) < 0.5 * sent_error(shuffled, 0.2)
    assert sent_error(features, 0.2) < 0.7 * sent_error(features.flatten(1), 0.2)


def test_low_rank_gradients_cost_little() -> None:
    """As those of a batch of two classes: a few directions among the samples."""
    draw = torch.Generator().manual_seed(0)
    low_rank = torch.randn(48, 3, generator=draw) @ torch.randn(3, 512, generator=draw)
    full_rank = torch.randn(48, 512, generator=draw)
    assert error(low_rank, 3000) < 0.2 * error(full_rank, 3000)


def noise_with_zeros(share: float) -> Tensor:
    """Noise of which this share is not zero."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(64, 256, generator=draw) * (
        torch.rand(64, 256, generator=draw) < share
    )


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_directions_do_not_spread_zeros(share: float) -> None:
    """At a quality: a zero that is mixed with others would cost bits and precision."""
    features = noise_with_zeros(share)
    cut = cut_codec("splitfc-rd", quality=20)
    seen, _ = cut.decode_features(cut.encode_features(features)[0], expect=(64, 256))
    assert not seen[features == 0].any()


@pytest.mark.parametrize("shape", [(64, 256), (256, 512), (16, 4096)])
def test_zeros_save_bits(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=draw)
    bits, _ = precision(noise, 20)
    bits_of_half, _ = precision(noise.relu(), 20)
    is_kept = torch.rand(shape, generator=draw) < 0.02
    bits_of_few, _ = precision(noise * is_kept, 20)
    assert bits_of_half < 0.9 * bits
    assert bits_of_few < 0.2 * bits


def error(matrix: Tensor, budget_bytes: int) -> float:
    payload = TransformQuant().encode(matrix, budget_bytes)
    decoded = TransformQuant().decode(memoryview(payload), *matrix.shape)
    return float(
        (decoded.double() - matrix.double()).square().sum()
        / matrix.double().square().sum()
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_the_scale_does_not_matter(scale: float) -> None:
    matrix = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    assert error(matrix * scale, 300) == pytest.approx(error(matrix, 300), rel=0.1)


def test_budgets_pay_for_what_offsets_hide() -> None:
    """One coefficient has the offset of all entries, and is far above the others."""
    matrix = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    lost = error(matrix + 30, 64 * 512 * 6 // 8)
    # relative to the noise, not to its offset
    assert lost * (30**2 + 1) < 0.01


def precision(
    features: Tensor, quality: float, ceiling: float = 32.0
) -> tuple[float, float]:
    """Bits per entry, and the error relative to how features vary, in what was wanted."""
    cut = cut_codec("splitfc-rd", quality=quality, uplink_bits=ceiling)
    flat = features.flatten(1)
    array, _ = cut.encode_features(features)
    seen, _ = cut.decode_features(array, expect=tuple(flat.shape))
    bits = 8 * len(array.data) / features.numel()
    return bits, feature_error(flat, seen) / 10 ** (-quality / 10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("offset", [300, 1000])
@pytest.mark.parametrize(
    "shape", [(1, 64), (2, 64), (64, 512), (600, 40), (32, 16, 8, 8), (32, 64, 64)]
)
def test_offsets_cost_no_quality(
    shape: tuple[int, ...], offset: float, seed: int
) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for quality in (15, 20):
        _, error = precision(features + offset, quality)
        assert error < 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("offset", [300, 1000])
@pytest.mark.parametrize("shape", [(9, 40), (32, 128), (64, 512)])
def test_offsets_of_columns_cost_no_quality(
    shape: tuple[int, int], offset: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(shape, generator=draw)
    offsets = offset * torch.randn(1, shape[1], generator=draw)
    for quality in (15, 20):
        _, error = precision(features + offsets, quality)
        assert error < 2


def test_offsets_cost_few_bits() -> None:
    features = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    plain_bits, plain_error = precision(features, 20)
    for offset in (100, 300, 1000):
        bits, error = precision(features + offset, 20)
        assert bits < 1.15 * plain_bits
        assert error < 1.05 * plain_error
        # a ceiling costs precision, and no more than without an offset
        capped_bits, capped_error = precision(features + offset, 20, ceiling=2.0)
        assert capped_bits <= 2
        assert capped_error < 1.5 * precision(features, 20, ceiling=2.0)[1]


def test_spread_offsets_are_decoded_as_the_format_says() -> None:
    features = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)) + 2500
    cut = cut_codec("splitfc-rd", quality=20)
    array, _ = cut.encode_features(features)
    seen, _ = cut.decode_features(array, expect=(9, 40))
    by_format, _ = independent.decode_features(
        array.stype,
        array.shape,
        array.data,
        agreed=array.stype,
        most_rows=9,
        columns=40,
    )
    assert seen.flatten().tolist() == by_format
    assert feature_error(features, seen) < 0.02


def test_small_offsets_are_not_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) + 30
    before = precision(features, 20)
    monkeypatch.delattr(transform_quant, "mean_reflectors")
    assert precision(features, 20) == before


def test_what_is_never_negative_stays_so() -> None:
    features = smooth_maps(16, 8, 8)
    cut = cut_codec("splitfc-rd", uplink_bits=0.3)
    seen, _ = cut.decode_features(cut.encode_features(features)[0], expect=(16, 512))
    assert float(seen.min()) == 0
    signed = cut.decode_features(
        cut.encode_features(features - features.mean())[0], expect=(16, 512)
    )[0]
    assert float(signed.min()) < 0


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (3, 1), (2, 5, 1, 1), (4, 3, 2), (2, 97, 3)]
)
def test_any_shape_comes_through(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    cut = cut_codec("splitfc-rd", uplink_bits=400.0, downlink_bits=400.0)
    array, link = cut.encode_features(features)
    seen, server_link = cut.decode_features(
        array, expect=(shape[0], features[0].numel())
    )
    torch.testing.assert_close(
        seen, features.flatten(1), rtol=0, atol=float(features.abs().max()) / 1000
    )
    gradient = torch.randn(seen.shape)
    back = cut.decode_gradient(cut.encode_gradient(gradient, server_link), link)
    torch.testing.assert_close(
        back, gradient, rtol=0, atol=float(gradient.abs().max()) / 1000
    )


@pytest.mark.parametrize("matrix", [torch.zeros(4, 6), torch.full((4, 6), 1e-44)])
def test_nothing_to_send(matrix: Tensor) -> None:
    payload = TransformQuant().encode(matrix, 100)
    assert len(payload) == 4
    assert not TransformQuant().decode(memoryview(payload), 4, 6).any()


def test_too_small_a_budget_sends_zeros() -> None:
    payload = TransformQuant().encode(torch.randn(16, 64), 5)
    assert len(payload) <= 5
    assert not TransformQuant().decode(memoryview(payload), 16, 64).any()
