"""Shares that cover the set."""

import numpy as np
import pytest
import torch

from flwr_splitfc.vision import partition


def label_tensor(num_samples: int = 1438) -> torch.Tensor:
    return torch.randint(10, (num_samples,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("how", ["iid", "dirichlet", "shards"])
def test_shares_are_disjoint_and_cover_the_set(how: str) -> None:
    labels = label_tensor(1400)  # 40 shards of 35
    shares = partition(labels, num_devices=20, how=how)
    assert len(shares) == 20
    assert min(map(len, shares)) > 0
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(1400))


@pytest.mark.parametrize("how", ["iid", "dirichlet", "shards"])
def test_seed_decides_the_shares(how: str) -> None:
    first, again, other = (
        partition(label_tensor(), 20, how, seed=seed) for seed in (0, 0, 1)
    )
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


@pytest.mark.parametrize("how", ["iid", "dirichlet", "shards"])
def test_a_seed_may_be_negative(how: str) -> None:
    first, again, other = (
        partition(label_tensor(), 20, how, seed=seed) for seed in (-1, -1, -2)
    )
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


@pytest.mark.parametrize(
    ("num_samples", "used"), [(1438, 1400), (1439, 1400), (79, 40), (40, 40)]
)
def test_shards_are_equal_and_leave_less_than_one_sample_per_shard(
    num_samples: int, used: int
) -> None:
    shares = partition(label_tensor(num_samples), num_devices=20, how="shards")
    assert {len(share) for share in shares} == {used // 20}
    assert len(np.unique(np.concatenate(shares))) == used


@pytest.mark.parametrize("shards_per_device", [1, 2, 3])
def test_shards_hold_few_labels(shards_per_device: int) -> None:
    labels = label_tensor()
    shares = partition(labels, 20, "shards", shards_per_device=shards_per_device)
    assert max(len(labels[share].unique()) for share in shares) <= 2 * shards_per_device
    # Ten classes have nine borders, and a border gives one shard one label more.
    assert (
        sum(len(labels[share].unique()) for share in shares)
        <= 20 * shards_per_device + 9
    )


def test_iid_shares_hold_every_label_and_dirichlet_ones_do_not() -> None:
    labels = label_tensor()
    assert all(
        len(labels[share].unique()) == 10 for share in partition(labels, 10, "iid")
    )
    assert any(
        len(labels[share].unique()) < 10
        for share in partition(labels, 10, "dirichlet", alpha=0.1)
    )


@pytest.mark.parametrize(
    ("num_devices", "settings", "error"),
    [
        (
            20,
            {"how": "by-name"},
            "partitioner is 'by-name', wanted one of dirichlet, iid, shards",
        ),
        (0, {"how": "iid"}, "0 devices cannot share 100 samples by 'iid'"),
        (101, {"how": "dirichlet"}, "101 devices cannot share 100 samples"),
        (
            51,
            {"how": "shards"},
            "51 devices cannot share 100 samples by 'shards' with 2 shards each",
        ),
        (20, {"how": "shards", "shards_per_device": 0}, "with 0 shards each"),
        (5, {"how": "dirichlet", "alpha": 0.0}, "greater than zero"),
    ],
)
def test_shares_that_cannot_be(
    num_devices: int, settings: dict[str, str | float], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        partition(label_tensor(100), num_devices, **settings)


@pytest.mark.filterwarnings("ignore:The specified min_partition_size")
def test_dirichlet_that_leaves_a_device_empty() -> None:
    with pytest.raises(
        ValueError,
        match="'dirichlet' leaves one of 90 devices without samples; raise its alpha",
    ):
        partition(label_tensor(100), 90, "dirichlet", alpha=0.001)
