"""A quality in place of budgets: what it costs, what it gives, and its ceilings."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec, codec_names, cut_codec
from flwr_splitfc.codec.quality import (
    automatic_quality,
    feature_error,
    gradient_error,
    labels_per_row,
)
from tests.codec.cuts import affordable_cut

WITH_QUALITY = ["splitfc-rd", "quant-only"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coded(cut: CutCodec, features: Tensor, gradient: Tensor) -> tuple[float, ...]:
    """Return bits and relative error of the features, and of the gradient."""
    rows, columns = features.flatten(1).shape
    up, link = cut.encode_features(features)
    seen, server_link = cut.decode_features(up, expect=(rows, columns))
    down = cut.encode_gradient(gradient, server_link)
    came = cut.decode_gradient(down, link)
    bits = [8 * len(array.data) / features.numel() for array in (up, down)]
    return (
        bits[0],
        feature_error(features.flatten(1), seen),
        bits[1],
        gradient_error(gradient.flatten(1), came),
    )


@pytest.mark.parametrize("name", WITH_QUALITY)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_error_of_noise_is_what_the_quality_says(name: str, scale: float) -> None:
    """Of what no code can predict, all entries are far above a step."""
    features, gradient = scale * noise(64, 8, 6, 6), scale * noise(64, 8, 6, 6, seed=1)
    for quality in (15.0, 23.0, 35.0):
        cut = cut_codec(name, quality=quality)
        _, error, _, error_down = coded(cut, features, gradient)
        wanted = 10 ** (-quality / 10)
        assert wanted / 2 < error < 2 * wanted
        # 6 dB are a factor of four
        assert 2 * wanted < error_down < 8 * wanted


def test_rate_follows_content() -> None:
    """A batch of one direction takes fewer bits, for no larger error."""
    cut = cut_codec("splitfc-rd", quality=23)
    one_direction = noise(64, 1) * noise(1, 288, seed=1)
    easy = coded(cut, one_direction, one_direction)
    hard = coded(cut, noise(64, 288), noise(64, 288))
    assert easy[0] < hard[0] / 3
    assert easy[1] < hard[1]
    assert easy[2] < hard[2] / 3
    assert easy[3] < hard[3]


def test_offsets_of_columns_cost_no_precision() -> None:
    """The error is relative to how features vary, not to where they are."""
    cut = cut_codec("splitfc-rd", quality=20)
    features = noise(64, 288)
    offsets = 50 * noise(1, 288, seed=1)
    plain = coded(cut, features, features)
    moved = coded(cut, features + offsets, features)
    assert plain[1] / 2 < moved[1] < 2 * plain[1]


@pytest.mark.parametrize("name", WITH_QUALITY)
def test_a_budget_is_the_ceiling_of_a_quality(name: str) -> None:
    features, gradient = noise(64, 8, 6, 6), noise(64, 8, 6, 6, seed=1)
    free = coded(cut_codec(name, quality=20), features, gradient)
    cut = cut_codec(name, quality=20, uplink_bits=1.0, downlink_bits=0.5)
    bound = coded(cut, features, gradient)
    assert bound[0] <= 1.0 < free[0]
    assert bound[2] <= 0.5 < free[2]
    # a ceiling that is not reached changes nothing
    high = cut_codec(name, quality=20, uplink_bits=8.0, downlink_bits=8.0)
    assert coded(high, features, gradient) == free


TINY = [(1, 1), (1, 4), (1, 11), (2, 5), (4, 3), (8, 1), (3, 16)]


@pytest.mark.parametrize("quality", [0.0, 20.0, 60.0])
@pytest.mark.parametrize("name", WITH_QUALITY)
@pytest.mark.parametrize("shape", TINY)
def test_without_a_ceiling_every_shape_is_sent_as_precisely_as_any(
    name: str, quality: float, shape: tuple[int, int]
) -> None:
    """However much more than its entries the smallest payload takes."""
    features = noise(*shape)
    free = cut_codec(name, quality=quality, evaluation="codec")
    high = cut_codec(
        name,
        quality=quality,
        evaluation="codec",
        uplink_bits=4000.0,
        downlink_bits=4000.0,
    )
    free.check_budget(*shape)
    assert coded(free, features, features) == coded(high, features, features)
    assert coded(free.mirror(), features, features) == coded(
        high.mirror(), features, features
    )
    for training in (True, False):
        # as a session's last batch, too
        for full_rows in (None, 64):
            payloads = [
                cut.encode_features(features, training=training, full_rows=full_rows)[0]
                for cut in (free, high)
            ]
            assert payloads[0].data == payloads[1].data


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("name", WITH_QUALITY)
def test_small_batches_are_as_precise_as_large_ones(name: str, rows: int) -> None:
    features = noise(rows, 512)
    for quality in (20.0, 30.0):
        _, error, *_ = coded(cut_codec(name, quality=quality), features, features)
        assert error < 1.5 * 10 ** (-quality / 10)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", WITH_QUALITY)
def test_columns_that_do_not_vary_take_no_precision_from_others(
    name: str, share: float
) -> None:
    features = noise(64, 512)
    constant = int(512 * share)
    features[:, :constant] = 3 * noise(1, constant, seed=1)
    _, error, *_ = coded(cut_codec(name, quality=20), features, features)
    assert error < 1.5 * 10**-2


@pytest.mark.parametrize("narrow", [0, 20])
@pytest.mark.parametrize("others", [0.0, 3.0])
@pytest.mark.parametrize(
    ("rows", "columns", "live"), [(4, 512, 40), (8, 1024, 20), (16, 4096, 60)]
)
@pytest.mark.parametrize("name", ["splitfc", "quant-only"])
def test_a_few_columns_among_constant_ones_are_precise(
    name: str, rows: int, columns: int, live: int, others: float, narrow: int
) -> None:
    """Also beside others that vary by less than a step."""
    features = torch.full((rows, columns), others)
    features[:, :live] += noise(rows, live)
    features[:, live : live + narrow] += 0.01 * noise(rows, narrow, seed=1)
    settings = {"reduction": 1} if name == "splitfc" else {}
    gradient = features - others
    coded_now = coded(cut_codec(name, quality=20, **settings), features, gradient)
    assert coded_now[1] < 1.5 * 10**-2
    assert coded_now[3] < 6 * 10**-2


def test_the_automatic_quality_goes_by_the_entries_of_a_label() -> None:
    """Whether the session tells the labels or the shape does."""
    features = noise(16, 64, 32)  # 64 positions of 32 channels
    cut = cut_codec("splitfc-rd")
    by_shape, _ = cut.encode_features(features)
    told, _ = cut.encode_features(features, labels_per_row=64)
    one_label, _ = cut.encode_features(features, labels_per_row=1)
    same, _ = cut_codec("splitfc-rd", quality=automatic_quality(32)).encode_features(
        features
    )
    assert by_shape.data == told.data == same.data
    assert len(one_label.data) < 0.7 * len(told.data)


def test_labels_of_a_sample() -> None:
    assert labels_per_row(8, rows=8) == 1
    assert labels_per_row(8 * 64, rows=8) == 64
    assert labels_per_row(0, rows=8) == labels_per_row(0, rows=0) == 1


def test_which_settings_mean_a_quality() -> None:
    """A budget alone is spent; nothing at all is the automatic quality."""
    nothing = cut_codec("splitfc-rd")
    assert (nothing.quality, nothing.uplink_bits) == (0.0, 32.0)
    budget = cut_codec("splitfc-rd", uplink_bits=0.2)
    assert (budget.quality, budget.downlink_bits) == (None, 0.4)
    both = cut_codec("splitfc-rd", uplink_bits=0.2, quality=20)
    assert (both.quality, both.downlink_bits) == (20, 32.0)
    # the paper's codec spends its budgets unless it is told a quality
    paper = cut_codec("splitfc")
    assert (paper.quality, paper.uplink_bits, paper.downlink_bits) == (None, 0.2, 0.4)
    assert cut_codec("splitfc", quality=20, reduction=1).uplink_bits == 32.0
    for cut in (nothing, budget, both, paper):
        assert cut_codec(cut.config()) == cut
        assert eval(repr(cut)) == cut


@pytest.mark.parametrize("quality", [-1.0, 0.5, 61.0, float("nan"), float("inf")])
def test_what_is_no_quality(quality: float) -> None:
    with pytest.raises(ValueError, match=r"quality must be 0 .* or 1 to 60 dB, got"):
        cut_codec("splitfc-rd", quality=quality)


def test_a_batch_of_which_no_column_is_drawn_has_a_quality() -> None:
    features = noise(8, 3)
    cut = cut_codec("splitfc", quality=0, reduction=3, uplink_bits=24, downlink_bits=24)
    seed = next(seed for seed in range(100) if kept_columns(cut, features, seed) == 0)
    up, link = cut.encode_features(features, generator=torch.manual_seed(seed))
    seen, server_link = cut.decode_features(up, expect=(8, 3))
    down = cut.encode_gradient(features, server_link)
    assert not seen.any()
    assert not cut.decode_gradient(down, link).any()


def kept_columns(cut: CutCodec, features: Tensor, seed: int) -> int:
    _, link = cut.encode_features(features, generator=torch.manual_seed(seed))
    return link.kept


def test_a_codec_without_quality_says_so() -> None:
    with pytest.raises(ValueError, match="codec 'top-s' has no setting 'quality'"):
        cut_codec("top-s", quality=20)


def flat_in_a_row(rows: int, columns: int) -> Tensor:
    return torch.ones(rows, columns)


def one_entry(rows: int, columns: int) -> Tensor:
    matrix = torch.zeros(rows, columns)
    matrix[rows // 2, columns // 3] = -3e-5
    return matrix


def low_rank(rows: int, columns: int) -> Tensor:
    """Rank 3 and mostly zero, as the gradient of a network whose channels die."""
    matrix = noise(rows, 3) @ noise(3, columns, seed=1)
    return matrix * (noise(1, columns, seed=2) > 1.1)


def repeated_rows(rows: int, columns: int) -> Tensor:
    return noise(1, columns).repeat(rows, 1)


def subnormal(rows: int, columns: int) -> Tensor:
    return 1e-41 * noise(rows, columns)


def mixed_with_subnormal(rows: int, columns: int) -> Tensor:
    return noise(rows, columns) * torch.where(noise(1, columns) > 0, 1.0, 1e-42)


def huge_spans(rows: int, columns: int) -> Tensor:
    exponents = torch.linspace(-40, 37, columns)
    return noise(rows, columns).clamp(-9, 9) * 10**exponents


def largest(rows: int, columns: int) -> Tensor:
    return 1e38 * noise(rows, columns).sign()


def outlier(rows: int, columns: int) -> Tensor:
    matrix = noise(rows, columns)
    matrix[0, 0] = 1e30
    return matrix


MATRICES = [
    flat_in_a_row,
    one_entry,
    low_rank,
    repeated_rows,
    subnormal,
    mixed_with_subnormal,
    huge_spans,
    largest,
    outlier,
]
SHAPES = [(32, 16, 5, 5), (1, 64), (2, 3, 8), (40, 7)]


@pytest.mark.parametrize("quality", [None, 0.0, 1.0, 60.0])
@pytest.mark.parametrize("name", WITH_QUALITY)
@pytest.mark.parametrize("make", MATRICES)
def test_every_finite_matrix_is_coded(
    name: str, quality: float | None, make: Callable[[int, int], Tensor]
) -> None:
    """And comes back finite, whatever it is, in both directions."""
    bits = {"uplink_bits": 9.0, "downlink_bits": 9.0} if quality is None else {}
    cut = cut_codec(name, quality=quality, **bits)
    for shape in SHAPES:
        rows, columns = shape[0], torch.Size(shape[1:]).numel()
        matrix = make(rows, columns).view(shape)
        *_, error = coded(cut, matrix, matrix)
        assert error >= 0


def refusal(cut: CutCodec, matrix: Tensor) -> str:
    """Return why a codec does not take a matrix, if it does not."""
    try:
        coded(cut, matrix, matrix)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("bits", [0.2, 4.0])
@pytest.mark.parametrize("name", codec_names())
def test_every_codec_takes_every_finite_matrix(name: str, bits: float) -> None:
    """Only dropout's scale carries the largest ones out of float32, and says so."""
    for make in MATRICES:
        for shape in SHAPES:
            rows, columns = shape[0], torch.Size(shape[1:]).numel()
            matrix = make(rows, columns).view(shape)
            cut = affordable_cut(name, rows, columns, bits, bits)
            reason = refusal(cut, matrix)
            if reason:
                assert cut.selector.rescales
                assert make in (huge_spans, largest)
                assert re.search("beyond float32|after the scale", reason)


def test_an_eigen_decomposition_that_fails_costs_bits_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On some machines LAPACK does not converge; which matrices do it differs."""
    features = noise(32, 3) @ noise(3, 400, seed=1)
    cut = cut_codec("splitfc-rd", quality=25)
    plain = coded(cut, features, features)
    whole = torch.linalg.eigh
    calls = []

    def failing(matrix: Tensor) -> object:
        calls.append(matrix.dtype)
        if len(calls) % 3:
            raise torch.linalg.LinAlgError("did not converge")
        return whole(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    failed = coded(cut, features, features)
    assert set(calls) == {torch.float32, torch.float64}
    assert failed[1] < 2 * plain[1]
    assert failed[3] < 2 * plain[3]
