"""Adaptive feature-wise dropout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec import BudgetError, CutCodec, FeatureDropout, cut_codec
from flwr_splitfc.codec.channels import Channels
from flwr_splitfc.codec.selectors.feature_dropout import keep_probabilities
from flwr_splitfc.codec.selectors.selection import Selection


def flat(width: int) -> Channels:
    return Channels.of((1, width))


def normalised_dispersion(features: torch.Tensor) -> torch.Tensor:
    """The slow, obvious way, for (B, C, H, W)."""
    low, high = (
        features.amin((0, 2, 3), keepdim=True),
        features.amax((0, 2, 3), keepdim=True),
    )
    normalised = torch.nan_to_num((features - low) / (high - low))
    return normalised.double().flatten(1).std(0, unbiased=False)


@given(
    st.lists(st.floats(0, 0.5) | st.just(0.0), min_size=1, max_size=60),
    st.floats(1, 40),
)
@settings(max_examples=200, deadline=None)
def test_probabilities_add_up(dispersion: list[float], reduction: float) -> None:
    keep = keep_probabilities(torch.tensor(dispersion, dtype=torch.float64), reduction)
    assert float(keep.sum()) == pytest.approx(len(dispersion) / reduction, rel=1e-9)
    assert float(keep.min()) >= 0
    assert float(keep.max()) <= 1


def test_bias_is_the_smallest_that_works() -> None:
    dispersion = torch.tensor([0.0, 0.01, 0.02, 0.5], dtype=torch.float64)
    assert float(keep_probabilities(dispersion, 2.0).max()) == pytest.approx(
        1, abs=1e-12
    )
    level = torch.tensor([0.0, 0.3, 0.3, 0.2], dtype=torch.float64)
    assert float(keep_probabilities(level, 4.0)[0]) == 0.0


def test_special_cases() -> None:
    zeros = torch.zeros(8, dtype=torch.float64)
    assert keep_probabilities(zeros, 4.0).tolist() == [0.25] * 8
    assert keep_probabilities(zeros + 0.3, 1.0).tolist() == [1.0] * 8


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_scale_is_the_inverse_keep_probability(offset: float) -> None:
    features = (
        torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        * torch.rand(3)
        + offset
    )
    features[:, 2] = 7.0
    keep = keep_probabilities(normalised_dispersion(features.double()), 3.0)
    selector, generator = FeatureDropout(3.0), torch.Generator().manual_seed(5)
    kept, link = selector.select(
        features.flatten(1),
        Selection(
            Channels.of(features.shape),
            affordable=0,
            budget_bytes=0,
            generator=generator,
        ),
    )
    assert link.columns is not None
    assert link.scale is not None
    torch.testing.assert_close(
        link.scale.double(), 1 / keep[link.columns], rtol=1e-4, atol=0
    )
    torch.testing.assert_close(kept, features.flatten(1)[:, link.columns] * link.scale)


def test_features_come_through_unbiased() -> None:
    features = torch.rand(8, 40, generator=torch.Generator().manual_seed(0))
    selector, generator, draws = (
        FeatureDropout(4.0),
        torch.Generator().manual_seed(1),
        4000,
    )
    total, squares = (
        torch.zeros(8, 40, dtype=torch.float64),
        torch.zeros(8, 40, dtype=torch.float64),
    )
    for _ in range(draws):
        kept, link = selector.select(
            features,
            Selection(flat(40), affordable=0, budget_bytes=0, generator=generator),
        )
        server = type(link)(link.rows, link.width, link.columns)
        seen = server.expand(kept).double()
        total += seen
        squares += seen**2
    mean = total / draws
    deviation = ((squares / draws - mean**2) / draws).sqrt()
    assert bool(((mean - features).abs() <= 5 * deviation + 1e-6).all())


def test_number_of_columns_stays_below_the_worst_case() -> None:
    selector, generator = FeatureDropout(16.0), torch.Generator().manual_seed(2)
    features = torch.randn(4, 512)
    counts = [
        selector.select(
            features,
            Selection(flat(512), affordable=0, budget_bytes=0, generator=generator),
        )[1].kept
        for _ in range(300)
    ]
    assert sum(counts) / 300 == pytest.approx(32, abs=5 * (32 / 300) ** 0.5)
    assert max(counts) <= selector.most_columns(512) == 72


def test_reduction_one_keeps_everything_unscaled() -> None:
    features = torch.randn(4, 6)
    kept, link = FeatureDropout(1.0).select(
        features, Selection(flat(6), affordable=0, budget_bytes=0)
    )
    assert link.columns is None
    assert link.scale is None
    assert torch.equal(kept, features)
    assert (
        len(FeatureDropout(1.0).pack(link))
        == FeatureDropout(1.0).most_bytes(1, 6, 6)
        == 4
    )


def test_the_server_learns_columns_and_no_probabilities() -> None:
    selector = FeatureDropout(2.0)
    _, link = selector.select(
        torch.randn(5, 64),
        Selection(
            flat(64),
            affordable=0,
            budget_bytes=0,
            generator=torch.Generator().manual_seed(0),
        ),
    )
    data = selector.pack(link)
    server, rest = selector.unpack(memoryview(data + b"rest"), 5, 64)
    assert bytes(rest) == b"rest"
    assert server.scale is None
    assert server.columns is not None
    assert link.columns is not None
    assert torch.equal(server.columns, link.columns)
    assert len(data) <= selector.most_bytes(5, selector.most_columns(64), 64)


def payload(cut: CutCodec, rows: int, columns: int = 1152) -> bytes:
    """What the codec sends of features; equal generators draw equal columns."""
    draw = torch.Generator().manual_seed(3)
    features = torch.randn(rows, columns, generator=draw)
    array, _ = cut.encode_features(features, generator=draw)
    return array.data


@pytest.mark.parametrize(
    ("bits", "reduction"),
    [(0.05, 32), (0.1, 16), (0.2, 8), (0.5, 3.2), (1, 1.6), (2, 1)],
)
def test_the_budget_decides_how_many_columns_are_kept(
    bits: float, reduction: float
) -> None:
    by_default = cut_codec("splitfc", uplink_bits=bits)
    told = cut_codec("splitfc", uplink_bits=bits, reduction=reduction)
    assert payload(by_default, 64) == payload(told, 64)
    # devices and rounds have budgets of their own
    replaced = replace(cut_codec("splitfc", uplink_bits=0.7), uplink_bits=bits)
    assert payload(replaced, 64) == payload(told, 64)
    assert by_default.rescales == (reduction > 1)


def test_a_batch_that_is_too_small_for_its_columns_has_fewer() -> None:
    """Of four rows a column takes more than 1.6 bits for each of its entries."""
    cut = cut_codec("splitfc", uplink_bits=0.3)
    told = cut_codec("splitfc", uplink_bits=0.3, reduction=16)
    assert payload(cut, 4) == payload(told, 4)


@pytest.mark.parametrize("bits", [1e-4, 0.01, 0.05])
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 64])
def test_the_smallest_budget_that_an_error_names_works(rows: int, bits: float) -> None:
    cut = cut_codec("splitfc", uplink_bits=bits, downlink_bits=bits)
    try:
        cut.check_budget(rows, 1152)
    except BudgetError:
        up, down = cut.smallest_bits(rows, 1152)
        enough = replace(cut, uplink_bits=max(up, bits), downlink_bits=max(down, bits))
        enough.check_budget(rows, 1152)
        assert len(payload(enough, rows)) <= rows * 1152 * enough.uplink_bits / 8


def test_the_budget_of_evaluation_drops_no_columns_in_training() -> None:
    """A short batch is sent where evaluation has too few bits for it."""
    cut = cut_codec("splitfc", uplink_bits=1, evaluation="codec", evaluation_bits=0.01)
    told = replace(cut, selector=FeatureDropout(1.6))
    assert payload(cut, 32) == payload(told, 32)


def test_features_on_their_way_down_go_by_the_budget_downwards() -> None:
    cut = cut_codec("splitfc", uplink_bits=4, downlink_bits=0.2).mirror()
    told = cut_codec("splitfc", uplink_bits=4, downlink_bits=0.2, reduction=8).mirror()
    assert payload(cut, 64) == payload(told, 64)


def test_a_quality_keeps_all_columns() -> None:
    cut = cut_codec("splitfc", quality=20)
    _, link = cut.encode_features(torch.randn(64, 1152))
    assert link.columns is None
    assert not cut.rescales


@pytest.mark.parametrize("reduction", [0.5, float("nan"), float("inf"), -1])
def test_reduction_out_of_range(reduction: float) -> None:
    with pytest.raises(ValueError, match="at least 1, got"):
        FeatureDropout(reduction)


@pytest.mark.parametrize("largest", [2e37, 9e37])
def test_features_that_their_scale_carries_too_far(largest: float) -> None:
    features = largest * torch.linspace(0, 1, 8)[:, None].repeat(1, 64)
    cut = cut_codec("splitfc", reduction=16, uplink_bits=8.0)
    with pytest.raises(ValueError, match=r"features reach .*e\+3[89] after the scale"):
        cut.encode_features(features)
