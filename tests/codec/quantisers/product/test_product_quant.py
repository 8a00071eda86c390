"""FedLite: subvectors by centroids, and the gradient correction."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec import PayloadError, ProductQuant, cut_codec
from flwr_splitfc.codec.quantisers.product.header import (
    codebook_bytes,
    pack_codebook,
    unpack_codebook,
)
from flwr_splitfc.codec.quantisers.product.kmeans import (
    moved_centroids,
    nearest_centroids,
)

EXTREMES = {
    "zeros": torch.zeros(5, 12),
    "one value": torch.full((5, 12), -3.7),
    "huge": torch.tensor([[1e38, -1e38, 9.9e37] * 4] * 3),
    "subnormal": torch.tensor([[1e-45, -3e-45, 1e-40, 0.0]] * 6),
    "mixed": torch.tensor([[1e38, 1e-45, 0.0, -1.0]] * 6),
}


def lloyd_step(
    vectors: list[list[float]], centroids: list[list[float]]
) -> list[list[float]]:
    """Plain Python; every centroid must have vectors."""
    members: list[list[list[float]]] = [[] for _ in centroids]
    for vector in vectors:
        distances = [
            sum((x - c) ** 2 for x, c in zip(vector, centroid, strict=True))
            for centroid in centroids
        ]
        members[distances.index(min(distances))].append(vector)
    return [
        [sum(column) / len(own) for column in zip(*own, strict=True)] for own in members
    ]


@pytest.mark.parametrize(
    ("count", "length", "centroids"), [(50, 1, 3), (200, 3, 7), (400, 8, 20)]
)
def test_a_step_is_lloyds(count: int, length: int, centroids: int) -> None:
    vectors = torch.randn(count, length, generator=torch.Generator().manual_seed(count))
    start = vectors[:centroids]
    expected = lloyd_step(vectors.tolist(), start.tolist())
    torch.testing.assert_close(moved_centroids(vectors, start), torch.tensor(expected))


def test_centroids_without_vectors_go_to_the_farthest() -> None:
    vectors = torch.tensor([[0.0], [0.0], [1.0], [50.0]])
    moved = moved_centroids(vectors, torch.zeros(2, 1))
    assert moved.tolist() == [[12.75], [50.0]]


def test_wide_searches_go_in_blocks() -> None:
    vectors, centroids = torch.randn(3000, 4), torch.randn(200, 4)
    distances = torch.cdist(vectors.double(), centroids.double())
    labels = nearest_centroids(vectors, centroids)
    found = distances.gather(1, labels[:, None]).flatten()
    torch.testing.assert_close(found, distances.amin(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (1, 30), (7, 9), (64, 37), (128, 96)]
)
@pytest.mark.parametrize("groups", [1, 3])
def test_every_subvector_is_its_nearest_centroid(
    rows: int, columns: int, groups: int
) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    quantiser = ProductQuant(groups=groups)
    payload = quantiser.encode(
        matrix, quantiser.smallest_bytes(rows, columns) + rows * columns // 8 + 40
    )
    decoded = quantiser.decode(memoryview(payload), rows, columns)
    codebook, _ = unpack_codebook(memoryview(payload), rows, columns)
    R, _, length = codebook.shape
    q = -(-columns // length)
    for row in range(rows):
        for position in range(q):
            piece = slice(position * length, min((position + 1) * length, columns))
            own = codebook[position * R // q, :, : piece.stop - piece.start]
            errors = (own.double() - matrix[row, piece]).square().sum(1)
            if piece.stop - piece.start < length:  # the zeros at the end count, too
                errors += (
                    codebook[position * R // q, :, piece.stop - piece.start :]
                    .double()
                    .square()
                    .sum(1)
                )
            found = (own == decoded[row, piece]).all(1)
            assert bool(found.any())
            assert float(errors[found].min()) <= float(errors.min()) * (1 + 1e-4) + 1e-6


def reference_error(matrix: torch.Tensor, length: int, centroids: int) -> float:
    """Of 25 full steps of Lloyd's algorithm from randomly chosen vectors."""
    vectors = matrix.reshape(-1, length)
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(3))[
        :centroids
    ]
    means = vectors[chosen]
    for _ in range(25):
        labels = torch.cdist(vectors, means).argmin(1)
        means = torch.stack(
            [
                vectors[labels == k].mean(0) if (labels == k).any() else means[k]
                for k in range(centroids)
            ]
        )
    return float((vectors - means[torch.cdist(vectors, means).argmin(1)]).norm())


@pytest.mark.parametrize("bits", [0.3, 1.0])
def test_error_is_that_of_k_means(bits: float) -> None:
    draw = torch.Generator().manual_seed(0)
    matrix = (
        torch.randn(128, 20, generator=draw) @ torch.randn(20, 256, generator=draw)
    ).relu()
    quantiser = ProductQuant()
    payload = quantiser.encode(matrix, int(128 * 256 * bits / 8))
    codebook, _ = unpack_codebook(memoryview(payload), 128, 256)
    _, centroids, length = codebook.shape
    error = float((quantiser.decode(memoryview(payload), 128, 256) - matrix).norm())
    # 0.99 to 1.07 over twenty seeds
    assert error < 1.15 * reference_error(matrix, length, centroids)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    groups=st.integers(1, 5),
    budget_bytes=st.integers(0, 600),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_budget_is_kept(
    rows: int, columns: int, groups: int, budget_bytes: int, seed: int
) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    quantiser = ProductQuant(groups=groups)
    least = quantiser.smallest_bytes(rows, columns)
    payload = quantiser.encode(matrix, budget_bytes)
    assert len(payload) <= max(budget_bytes, least)
    decoded = quantiser.decode(memoryview(payload), rows, columns)
    assert decoded.shape == matrix.shape
    assert float((decoded - matrix).norm()) <= 1.001 * float(matrix.norm())


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(name: str) -> None:
    matrix = EXTREMES[name]
    payload = ProductQuant().encode(matrix, 1000)
    decoded = ProductQuant().decode(memoryview(payload), *matrix.shape)
    torch.testing.assert_close(
        decoded, matrix, rtol=1e-3, atol=float(matrix.abs().max()) * 1e-7
    )


def test_no_columns() -> None:
    assert ProductQuant().encode(torch.zeros(3, 0), 0) == b""
    assert ProductQuant().smallest_bytes(3, 0) == 0
    assert ProductQuant().decode(memoryview(b""), 3, 0).shape == (3, 0)
    with pytest.raises(PayloadError, match="payload of no column has 1 bytes"):
        ProductQuant().decode(memoryview(b"\0"), 3, 0)


def test_own_randomness_is_always_the_same() -> None:
    matrix = torch.randn(64, 300)
    state = torch.get_rng_state()
    assert ProductQuant().encode(matrix, 900) == ProductQuant().encode(matrix, 900)
    assert torch.equal(torch.get_rng_state(), state)


def test_smallest_bits_work_and_less_does_not() -> None:
    features = torch.randn(64, 288)
    up, down = cut_codec("fedlite").smallest_bits(64, 288)
    cut = cut_codec("fedlite", uplink_bits=up, downlink_bits=down)
    array, link = cut.encode_features(features)
    assert len(torch.unique(cut.decode_features(array, expect=(64, 288))[0])) == 1
    assert 8 * len(cut.encode_gradient(features, link).data) <= down * 64 * 288
    with pytest.raises(ValueError, match=f"the smallest that works is {up}"):
        cut_codec("fedlite", uplink_bits=up - 1e-4).encode_features(features)


@pytest.mark.parametrize("correction", [0.0, 0.3])
def test_correction_is_the_gradient_of_the_quantisation_error(
    correction: float,
) -> None:
    torch.manual_seed(0)
    cut, weight = (
        cut_codec("fedlite", correction=correction, uplink_bits=1, downlink_bits=9),
        torch.randn(48, 3),
    )
    features = torch.randn(32, 48, requires_grad=True)
    up, link = cut.encode_features(features)
    seen, server_link = cut.decode_features(up, expect=(32, 48))
    seen.requires_grad_()
    (at_server,) = torch.autograd.grad((seen @ weight).square().mean(), seen)
    down = cut.encode_gradient(at_server, server_link)
    sent = cut.quantiser.decode(memoryview(down.data), 32, 48)
    penalty = correction / 2 * (features - seen.detach()).square().sum()
    (expected,) = torch.autograd.grad(penalty, features)
    torch.testing.assert_close(cut.decode_gradient(down, link), sent + expected)
    assert (link.correction is None) == (correction == 0)
    assert server_link.correction is None


def test_nothing_is_corrected_in_evaluation() -> None:
    _, link = cut_codec("fedlite", evaluation="codec").encode_features(
        torch.randn(64, 288), training=False
    )
    assert link.correction is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "groups must be at least 1, got 0"),
        (
            {"correction": -1.0},
            "correction must be a finite number of at least 0, got -1.0",
        ),
        ({"correction": float("nan")}, "correction must be .* got nan"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProductQuant(**settings)  # type: ignore[arg-type]


def codebook(
    length: int = 2,
    groups: int = 1,
    centroids: int = 2,
    scale: float = 1.0,
    entries: int = 4,
) -> memoryview:
    return memoryview(
        struct.pack("<IIHf", length, groups, centroids, scale)
        + np.ones(entries, "<f2").tobytes()
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "subvectors have 0 entries; 1 to 6 were wanted"),
        ({"length": 7}, "subvectors have 7 entries"),
        ({"length": 2**32 - 1}, "subvectors have 4294967295 entries"),
        ({"groups": 0}, "3 subvectors in 0 groups"),
        ({"groups": 4}, "3 subvectors in 4 groups"),
        ({"centroids": 0}, "1 x 0 centroids of 2 entries for a 2 x 6 matrix"),
        ({"centroids": 7}, "1 x 7 centroids of 2 entries"),
        ({"centroids": 65535, "groups": 3}, "3 x 65535 centroids"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"scale": 3e38}, "above 1e38"),
        ({"entries": 3}, "entries end early: 6 bytes left where 8 were wanted"),
    ],
)
def test_malformed_codebooks_are_named(fields: dict[str, float], message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        unpack_codebook(codebook(**fields), 2, 6)  # type: ignore[arg-type]


def test_golden_codebook() -> None:
    data = pack_codebook(np.array([[[1.0, -2.0]], [[0.5, 0.0]]], np.float16), 0.25)
    assert data.hex() == "020000000200000001000000803e003c00c000380000"
    assert len(data) == codebook_bytes(2, 2, 1)
    entries, rest = unpack_codebook(memoryview(data), 1, 4)
    assert entries.tolist() == [[[0.25, -0.5]], [[0.125, 0.0]]]
    assert bytes(rest) == b""
