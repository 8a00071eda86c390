"""A sample of the rows: its size, its bits, and an unbiased gradient."""

from __future__ import annotations

import pytest
import torch

from flwr_splitfc.codec import cut_codec
from flwr_splitfc.codec.selectors.row_sample import rows_in_time, rows_worthwhile


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
        ((4, 2**20), 32, 10**6, 2),
    ],
)
def test_rows_that_a_budget_is_spent_on(
    shape: tuple[int, int], channels: int, budget: int, sent: int
) -> None:
    wanted = rows_worthwhile(*shape, budget)
    assert min(wanted, rows_in_time(*shape, channels)) == sent


def test_with_a_quality_time_leaves_no_row_out_and_a_low_ceiling_does() -> None:
    features = torch.randn(256, 1152, generator=torch.Generator().manual_seed(5))
    _, of_quality = cut_codec("splitfc-rd").encode_features(features)
    assert of_quality.samples is None
    low = cut_codec("splitfc-rd", quality=20, uplink_bits=0.05, downlink_bits=0.1)
    _, of_ceiling = low.encode_features(features)
    assert of_ceiling.sent == 84


def test_of_a_part_of_the_batch_an_entry_takes_at_most_five_eighths_of_a_bit() -> None:
    features = torch.randn(
        64, 128, 8, 8, generator=torch.Generator().manual_seed(5)
    ).relu()
    cut = cut_codec("splitfc-rd", uplink_bits=0.45, downlink_bits=4.0)
    array, link = cut.encode_features(features)
    most = 5 * 32 * 8192 // 64
    assert link.sent == 32
    assert 0.9 * most < len(array.data) < most + 64


@pytest.mark.parametrize("bits", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(32, 8192), (4, 65536), (64, 128, 8, 8)])
def test_what_a_budget_of_bits_pays_for_is_spent(
    shape: tuple[int, ...], bits: float
) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(5)).relu()
    cut = cut_codec("splitfc-rd", uplink_bits=bits, downlink_bits=bits)
    array, link = cut.encode_features(features)
    assert link.samples is None
    # four rows have few steps to choose from
    assert 0.6 * bits < 8 * len(array.data) / features.numel() <= bits


def test_two_rows_stay_however_long_they_take() -> None:
    """BatchNorm behind the cut wants two."""
    cut = cut_codec("splitfc-rd", uplink_bits=0.1, downlink_bits=0.1)
    _, link = cut.encode_features(torch.randn(4, 64, 64, 64).relu())
    assert link.sent == 2


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
