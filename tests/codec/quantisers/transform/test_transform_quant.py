"""Transform coding: budgets are met and used, and what is smooth, correlated or sparse costs little."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flwr_splitfc.codec import cut_codec
from flwr_splitfc.codec.channels import Layout
from flwr_splitfc.codec.quantisers.transform.transform_quant import TransformQuant
from flwr_splitfc.codec.selectors.row_sample import rows_to_send


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


@pytest.mark.parametrize(
    ("shape", "channels", "budget", "sent"),
    [
        ((256, 1152), 32, 0, 1),
        ((256, 1152), 32, 1843, 84),
        ((64, 1152), 32, 10**6, 64),
        ((128, 4096), 64, 10**6, 128),
        ((256, 8192), 64, 10**6, 64),
        ((256, 8192), 128, 10**6, 32),
        ((256, 8192), 8192, 10**6, 32),
        ((256, 2**20), 32, 10**6, 32),
        ((4, 2**20), 32, 10**6, 1),
    ],
)
def test_rows_to_send(
    shape: tuple[int, int], channels: int, budget: int, sent: int
) -> None:
    assert rows_to_send(*shape, channels, budget) == sent


def test_of_a_part_of_the_batch_an_entry_takes_at_most_five_eighths_of_a_bit() -> None:
    features = torch.randn(
        64, 128, 8, 8, generator=torch.Generator().manual_seed(5)
    ).relu()
    cut = cut_codec("splitfc-rd", uplink_bits=4.0, downlink_bits=4.0)
    array, link = cut.encode_features(features)
    most = 5 * 32 * 8192 // 64
    assert link.sent == 32
    assert 0.9 * most < len(array.data) < most + 64


def test_a_sample_of_rows_is_uniform_and_its_gradient_unbiased() -> None:
    """Each row as often as any other; the mean of the gradients of samples is that of the batch."""
    rows, columns, draws = 40, 64, 400
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2))
    cut = cut_codec("splitfc-rd", uplink_bits=0.4, downlink_bits=60.0)
    generator = torch.Generator().manual_seed(0)
    counts, total = torch.zeros(rows), torch.zeros(columns)
    for _ in range(draws):
        array, link = cut.encode_features(
            torch.ones(rows, columns), generator=generator
        )
        server_link = cut.decode_features(array, expect=(rows, columns))[1]
        assert link.samples is not None
        assert torch.equal(link.samples, server_link.samples)
        counts[link.samples] += 1
        back = cut.decode_gradient(cut.encode_gradient(gradient, server_link), link)
        total += back.sum(0) / link.sent
    share = link.sent / rows
    assert (
        float((counts / draws - share).abs().max())
        < 4 * (share * (1 - share) / draws) ** 0.5 + 0.01
    )
    torch.testing.assert_close(total / draws, gradient.mean(0), rtol=0, atol=0.1)


def test_every_row_goes_up_where_the_loss_is_elsewhere() -> None:
    features = torch.randn(40, 64)
    cut = cut_codec("splitfc-rd", uplink_bits=0.4)
    assert cut.encode_features(features)[1].sent < 40
    for link in (
        cut.encode_features(features, all_rows=True)[1],
        cut.mirror().encode_features(features)[1],
        cut_codec("splitfc-rd", uplink_bits=0.4, evaluation="codec").encode_features(
            features, training=False
        )[1],
    ):
        assert link.samples is None
