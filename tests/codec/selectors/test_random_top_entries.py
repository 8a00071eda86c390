"""RandTop-S: sequential draws by weight, without replacement."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from flwr_splitfc.codec import RandomTopEntries, TopEntries, cut_codec
from flwr_splitfc.codec.channels import Channels
from flwr_splitfc.codec.selectors.selection import Selection

MAGNITUDES = [5.0, -1.0, 0.5, -4.0, 2.0]


def set_probabilities(weights: list[float], kept: int) -> dict[tuple[int, ...], float]:
    """Of each set of columns, by going through all orders in which it can be drawn."""
    probabilities: dict[tuple[int, ...], float] = {}
    for order in permutations(range(len(weights)), kept):
        probability, left = 1.0, sum(weights)
        for column in order:
            probability *= weights[column] / left
            left -= weights[column]
        drawn = tuple(sorted(order))
        probabilities[drawn] = probabilities.get(drawn, 0.0) + probability
    return probabilities


@pytest.mark.parametrize(
    ("kept", "alpha"), [(1, 0.1), (2, 0.1), (2, 0.6), (3, 0.3), (4, 0.9)]
)
def test_sets_have_their_probabilities(kept: int, alpha: float) -> None:
    width, rows = len(MAGNITUDES), 40_000
    top = sorted(range(width), key=lambda column: -abs(MAGNITUDES[column]))[:kept]
    weights = [
        (1 - alpha) / kept if column in top else alpha / (width - kept)
        for column in range(width)
    ]
    expected = set_probabilities(weights, kept)
    assert sum(expected.values()) == pytest.approx(1)

    matrix = torch.tensor(MAGNITUDES).repeat(rows, 1)
    generator = torch.Generator().manual_seed(kept)
    sent, link = RandomTopEntries(alpha).select(
        matrix,
        Selection(
            Channels.of(matrix.shape),
            affordable=kept,
            budget_bytes=0,
            generator=generator,
        ),
    )
    assert link.columns is not None
    assert torch.equal(sent, matrix.gather(1, link.columns))
    drawn, counts = torch.unique(link.columns, dim=0, return_counts=True)
    found = {
        tuple(columns.tolist()): int(count)
        for columns, count in zip(drawn, counts, strict=True)
    }
    assert found.keys() <= expected.keys()
    chi_square = sum(
        (found.get(key, 0) - rows * p) ** 2 / (rows * p) for key, p in expected.items()
    )
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 10


def test_rows_are_drawn_on_their_own_from_the_generator() -> None:
    matrix = torch.tensor(MAGNITUDES).repeat(200, 1)
    selector = RandomTopEntries(0.5)

    def columns(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        link = selector.select(
            matrix,
            Selection(
                Channels.of(matrix.shape),
                affordable=2,
                budget_bytes=0,
                generator=generator,
            ),
        )[1]
        assert link.columns is not None
        return link.columns

    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(columns(1), columns(1))
    assert not torch.equal(columns(1), columns(2))
    assert len(torch.unique(columns(1), dim=0)) > 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("alpha", "training"), [(0.0, True), (0.7, False)])
def test_without_chance_it_is_top_s(alpha: float, training: bool) -> None:
    matrix = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    channels = Channels.of(matrix.shape)
    _, link = RandomTopEntries(alpha).select(
        matrix, Selection(channels, affordable=7, budget_bytes=0, training=training)
    )
    _, expected = TopEntries().select(
        matrix, Selection(channels, affordable=7, budget_bytes=0)
    )
    assert link.columns is not None
    assert expected.columns is not None
    assert torch.equal(link.columns, expected.columns)


def test_what_is_not_kept_is_checked_too() -> None:
    features = torch.zeros(4, 200)
    features[2, 7] = float("nan")
    cut = cut_codec("rand-top-s", alpha=0.99, uplink_bits=1, downlink_bits=1)
    with pytest.raises(ValueError, match="NaN or inf"):
        cut.encode_features(features)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan"), float("inf")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(
        ValueError, match=f"alpha must be at least 0 and below 1, got {alpha}"
    ):
        RandomTopEntries(alpha)
