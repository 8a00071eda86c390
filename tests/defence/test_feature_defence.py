"""Clipped, noisy and decorrelated features, and what their noise guarantees."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from flwr_splitfc.defence import (
    FeatureDefence,
    SecretNoise,
    distance_correlation,
    feature_epsilon,
)


def test_no_sample_is_longer_than_the_norm() -> None:
    features = torch.randn(5, 3, 4, 4) * torch.arange(5).reshape(5, 1, 1, 1)
    clipped = FeatureDefence(clip_norm=2.0).clipped(features)
    norms = features.flatten(1).norm(dim=1)
    expected = features * (2.0 / norms.clamp(min=2.0)).reshape(5, 1, 1, 1)
    torch.testing.assert_close(clipped, expected)
    assert torch.equal(clipped[0], features[0])


def test_several_tensors_are_clipped_as_one() -> None:
    features = {
        "a": torch.full((1, 2), 3.0),
        "m": torch.ones(1),
        "b": torch.zeros(1, 1),
    }
    features["ids"] = torch.tensor([7])
    clipped = FeatureDefence(clip_norm=1.0).clipped(features)
    length = math.sqrt(3**2 + 3**2 + 1)
    torch.testing.assert_close(clipped["a"], torch.full((1, 2), 3 / length))
    assert clipped["ids"] is features["ids"]


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_holds_in_each_precision(dtype: torch.dtype, noise: float) -> None:
    """The factor is far below the smallest normal float16."""
    defence = FeatureDefence(clip_norm=1.0, noise=noise)
    clipped = defence.clipped(torch.full((1, 2**16), 43000.0, dtype=dtype))
    assert clipped.dtype == (torch.float32 if noise else dtype)
    length = clipped.double().norm().item()
    assert length == pytest.approx(1.0, rel=4 * torch.finfo(clipped.dtype).eps)


ROWS, PLACES = 4, 3
TOKENS = torch.zeros(ROWS, PLACES).long()
POSITIONS = torch.arange(ROWS * PLACES)
OFFSETS = torch.arange(ROWS)


def of_rows(rows: int) -> Tensor:
    return torch.rand(rows, 5)


@pytest.mark.parametrize(
    "inputs",
    [
        TOKENS,
        {"ids": TOKENS, "mask": torch.ones(ROWS, PLACES)},
        {"positions": torch.arange(PLACES)[None], "ids": TOKENS},  # shared
        (POSITIONS, OFFSETS),  # as an EmbeddingBag has them
        [torch.tensor(0.5), None, {"ids": TOKENS}],
    ],
)
def test_a_sample_is_a_row_of_the_inputs(inputs: Any) -> None:
    """Of several tensors the fewest rows count, and what has one is for all."""
    defence = FeatureDefence(clip_norm=1.0)
    for rows in (ROWS * PLACES, ROWS + 1, ROWS - 1, 0):
        with pytest.raises(ValueError, match="wanted a row of features for each"):
            defence(inputs, of_rows(rows))
    assert len(defence(inputs, of_rows(ROWS))) == ROWS


def test_a_list_may_have_a_tensor_for_each_sample() -> None:
    pictures = [torch.rand(3, size, size) for size in (5, 6, 7, 8)]
    defence = FeatureDefence(clip_norm=1.0)
    assert len(defence(pictures, of_rows(4))) == 4
    with pytest.raises(ValueError, match="wanted a row of features for each"):
        defence(pictures, of_rows(8))


@pytest.mark.parametrize("inputs", [None, "text", [TOKENS.sum()]])
def test_inputs_that_tell_no_samples_cannot_be_clipped(inputs: Any) -> None:
    with pytest.raises(ValueError, match="wanted a row of features for each"):
        FeatureDefence(clip_norm=1.0)(inputs, of_rows(ROWS))


def test_each_tensor_of_features_has_a_row_for_each_sample() -> None:
    features = {"hidden": of_rows(ROWS), "state": torch.rand(1, ROWS, 5)}
    with pytest.raises(ValueError, match=r"'state': \(1, 4, 5\).*inputs \(4, 3\)"):
        FeatureDefence(clip_norm=1.0)(TOKENS, features)


def test_a_batch_of_one_sample_is_clipped_whatever_is_beside_it() -> None:
    inputs = {"ids": TOKENS[:1], "positions": torch.arange(PLACES)}
    clipped = FeatureDefence(clip_norm=0.5)(inputs, of_rows(1) + 1)
    assert clipped.norm().item() == pytest.approx(0.5)


def test_without_a_norm_rows_are_what_they_are() -> None:
    features = of_rows(ROWS * PLACES)
    assert FeatureDefence()(TOKENS, features) is features


UNSENDABLE = [
    torch.tensor([math.nan, 1.0, 0.0]),
    torch.tensor([math.inf, 1.0, 0.0]),
    torch.tensor([-math.inf, math.inf, 0.0]),
    torch.tensor([1e30, 1.0, 0.0]),  # whose square is inf in float32
    torch.tensor([1e300, 1.0, 0.0], dtype=torch.float64),
]


@pytest.mark.parametrize("row", UNSENDABLE)
def test_a_sample_without_a_finite_length_goes_up_as_zeros(row: Tensor) -> None:
    """Else the server, which made the half, learns of what samples it overflows."""
    ordinary = torch.tensor([3.0, 4.0, 0.0], dtype=row.dtype)
    key = SecretNoise().key

    def sent(*rows: Tensor) -> Tensor:
        features = torch.stack(rows)
        return FeatureDefence(1.0, 8.0, source=SecretNoise(key))(features, features)

    assert torch.equal(sent(row, ordinary), sent(torch.zeros_like(row), ordinary))


def test_one_tensor_that_is_not_finite_makes_all_of_the_sample_zeros() -> None:
    features = {"a": torch.ones(2, 1, 3), "b": torch.tensor([math.nan, 0.0])}
    clipped = FeatureDefence(clip_norm=9.0).clipped(features)
    assert torch.equal(clipped["a"][0], torch.zeros(1, 3))
    assert torch.equal(clipped["b"], torch.zeros(2))
    assert torch.equal(clipped["a"][1], features["a"][1])


@pytest.mark.parametrize("row", UNSENDABLE)
@pytest.mark.parametrize("settings", [{"noise": 0.5}, {"nopeek": 0.7}])
def test_its_gradient_is_zero_and_that_of_others_stays(
    row: Tensor, settings: dict[str, float]
) -> None:
    """As if its features were zeros that nothing leads to."""
    inputs = torch.rand(4, 5)
    ordinary = torch.rand(3, 3, dtype=row.dtype) * 4

    def gradient(first: Tensor) -> Tensor:
        features = torch.cat([first[None], ordinary]).requires_grad_()
        sent = FeatureDefence(clip_norm=2.0, **settings)(inputs, features)
        (sent * torch.arange(12).reshape(4, 3)).sum().backward()
        assert features.grad is not None
        return features.grad

    got = gradient(row)
    assert torch.equal(got[0], torch.zeros_like(row))
    assert torch.equal(got[1:], gradient(torch.zeros_like(row))[1:])


def test_the_gradient_of_clipped_features_is_that_of_differences() -> None:
    features = torch.rand(3, 4, dtype=torch.float64) * torch.tensor([[0.1], [3], [9]])
    defence = FeatureDefence(clip_norm=2.0)

    def clipped(first: Tensor) -> Tensor:
        return defence.clipped(first)

    # the norm is float32's
    assert torch.autograd.gradcheck(
        clipped, features.requires_grad_(), eps=1e-2, atol=1e-3
    )


def test_the_noise_is_normal_and_as_wide_as_it_is_said() -> None:
    defence = FeatureDefence(clip_norm=4.0, noise=0.5)
    noise = defence(torch.zeros(200, 1), torch.zeros(200, 100)) / 2.0
    # fails once in a million runs
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_noisy_features_are_on_one_grid_whatever_they_were(dtype: torch.dtype) -> None:
    """Else the bits that a sum has lost tell features apart.

    An entry of 1 with noise of 8 is below 2^7 long, of which float32 holds multiples of
    2^-17 alone.
    """
    defence = FeatureDefence(clip_norm=1.0, noise=8.0)
    for entry in (0.0, 1e-3, 0.01):
        features = torch.full((200, 1024), entry, dtype=dtype)
        sent = defence(features, features)
        assert sent.dtype == torch.float32
        places = sent.double() * 2**17
        assert torch.equal(places, places.round())


def test_the_gradient_of_noisy_features_is_that_of_a_sum() -> None:
    features = torch.rand(4, 3, dtype=torch.bfloat16, requires_grad=True)
    sent = FeatureDefence(clip_norm=9.0, noise=0.5)(features, features)
    (2 * sent).sum().backward()
    assert torch.equal(features.grad, torch.full_like(features, 2.0))


def test_features_without_numbers_cannot_be_clipped() -> None:
    with pytest.raises(ValueError, match="neither clipping nor nopeek"):
        FeatureDefence(clip_norm=1.0).clipped(torch.ones(4, 2).long())


def test_the_noise_is_nobody_elses() -> None:
    """Not torch's, whose seed is the run's, and another in each process and step."""
    drawn = []
    for _ in range(3):
        torch.manual_seed(7)
        defence = FeatureDefence(clip_norm=1.0, noise=1.0)
        drawn += [defence(torch.zeros(2, 1), torch.zeros(2, 8)) for _ in range(2)]
        after = torch.rand(1)
        torch.manual_seed(7)
        assert torch.equal(torch.rand(1), after)
    for number, noise in enumerate(drawn):
        assert all(not torch.equal(noise, other) for other in drawn[:number])


def test_a_device_can_draw_the_noise_of_a_step_again() -> None:
    noise = SecretNoise()
    key = noise.key
    drawn = noise.normal((2, 5))
    assert torch.equal(SecretNoise(key).normal((2, 5)), drawn)
    noise.begin()
    assert not torch.equal(noise.normal((2, 5)), drawn)
    noise.begin(key)
    assert torch.equal(noise.normal((2, 5)), drawn)


def test_a_bad_key_is_refused() -> None:
    with pytest.raises(ValueError, match="the key has 4 bytes, wanted 32"):
        SecretNoise(b"four")


def test_the_penalty_is_in_the_gradient_alone() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    x = torch.randn(6, 3)
    features = model(x)
    features.square().mean().backward()
    (0.7 * distance_correlation(x, model(x))).backward()
    wanted = model.weight.grad.clone()
    model.zero_grad()
    sent = FeatureDefence(nopeek=0.7)(x, model(x))
    assert torch.equal(sent, features)
    sent.square().mean().backward()
    torch.testing.assert_close(model.weight.grad, wanted)


def test_without_a_graph_there_is_no_penalty() -> None:
    features = torch.rand(4, 2)
    with torch.no_grad():
        assert FeatureDefence(nopeek=1.0)(torch.rand(4, 3), features) is features


def test_tokens_cannot_be_correlated() -> None:
    features = torch.rand(4, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"no floating-point numbers in \(4, 3\)"):
        FeatureDefence(nopeek=1.0)(torch.ones(4, 3).long(), features)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"noise": 0.1}, "without a clip_norm"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0, wanted a number from 0 to 1e"),
        ({"clip_norm": 1e308, "noise": 1e308}, "clip_norm is 1e.308, wanted a number"),
        ({"nopeek": math.nan}, "nopeek is nan"),
        ({"clip_norm": 1.0, "noise": math.inf}, "noise is inf"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        FeatureDefence(**settings)


@pytest.mark.parametrize(("noise", "releases"), [(2.0, 1), (4.0, 30), (0.2, 5)])
def test_epsilon_is_the_accountants(noise: float, releases: int) -> None:
    """By its analysis itself, for a sensitivity of twice the norm."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis import rdp

    orders = [1 + number / 1000 for number in range(2, 100, 2)]
    orders += RDPAccountant.DEFAULT_ALPHAS
    spent = rdp.compute_rdp(
        q=1.0, noise_multiplier=noise / 2, steps=releases, orders=orders
    )
    wanted, _ = rdp.get_privacy_spent(orders=orders, rdp=spent, delta=1e-5)
    assert feature_epsilon(noise, releases) == pytest.approx(wanted, rel=1e-9)


def test_epsilon_is_above_that_of_the_exact_curve() -> None:
    """Balle and Wang (2018): RDP's epsilon is an upper bound, and not a loose one."""
    noise, delta = 4.0, 1e-5
    epsilon = feature_epsilon(noise, 1, delta)
    mu = 2 / noise

    def delta_of(epsilon: float) -> float:
        first = stats.norm.cdf(mu / 2 - epsilon / mu)
        second = stats.norm.cdf(-mu / 2 - epsilon / mu)
        return float(first - math.exp(epsilon) * second)

    assert delta_of(epsilon) < delta < delta_of(0.8 * epsilon)


@pytest.mark.parametrize("noise", [0.0, 1e-300, 1e300, math.inf, math.nan])
def test_epsilon_of_noise_out_of_range_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match=r"noise is .*wanted 1e-09 to 1e\+09"):
        feature_epsilon(noise, 1)


@pytest.mark.parametrize("releases", [0, 1.5, 10**16, math.inf, math.nan])
def test_epsilon_of_no_number_of_releases_is_refused(releases: float) -> None:
    with pytest.raises(ValueError, match=r"releases .*whole number from 1 to 1e\+15"):
        feature_epsilon(4.0, releases)  # type: ignore[arg-type]


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_epsilon_without_a_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match=r"delta .*between 0 and 1"):
        feature_epsilon(4.0, 1, delta)


def test_epsilon_is_a_number_from_zero_to_the_ends_of_both_ranges() -> None:
    assert feature_epsilon(1000.0, 1, 0.1) == 0
    assert 0 < feature_epsilon(1e9, 1) < 1
    assert 1e30 < feature_epsilon(1e-9, 10**15) < math.inf
