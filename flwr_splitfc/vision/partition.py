"""How devices share a labelled training set."""

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from flwr_splitfc.extras import imported
from flwr_splitfc.settings import check_choice
from flwr_splitfc.vision.images import Indices

PARTITIONERS = ("dirichlet", "iid", "shards")
"""The values of the key ``partitioner``."""


def partition(
    labels: Tensor,
    num_devices: int,
    how: str = "shards",
    *,
    seed: int = 0,
    alpha: float = 0.5,
    shards_per_device: int = 2,
) -> list[Indices]:
    """Return which training samples each device has, by `flwr_datasets`' partitioners.

    A sample is on one device at most, and on exactly one if `how` is not "shards".

    Parameters
    ----------
    labels : Tensor
        The labels of the training set, (N,).
    num_devices : int
        How many devices share it.
    how : str (default: "shards")
        "iid", equal shares at random; "dirichlet", each class divided by a draw from
        Dirichlet(`alpha`), so devices differ in size and in classes; "shards", the set
        sorted by label and cut into equal shards, of which each device gets
        `shards_per_device`. Shards are equal because up to `num_devices *
        shards_per_device - 1` samples, drawn at random, are left out.
    seed : int (default: 0)
        Decides who gets which samples.
    alpha : float (default: 0.5)
        Of "dirichlet", above 0: the smaller, the fewer classes a device has.
    shards_per_device : int (default: 2)
        Of "shards".

    Raises
    ------
    ValueError
        If there are too few samples, or `how` leaves a device without any.
    """
    check_choice("partitioner", how, PARTITIONERS)
    by_shards = how == "shards"
    num_parts = num_devices * shards_per_device if by_shards else num_devices
    if not 1 <= num_parts <= len(labels):
        shards = f" with {shards_per_device} shards each" if by_shards else ""
        raise ValueError(
            f"{num_devices} devices cannot share {len(labels)} samples by {how!r}"
            f"{shards}"
        )
    seed %= 2**64  # NumPy takes none below 0
    # shuffled here, as not every partitioner of flwr_datasets does
    order = np.random.default_rng(seed).permutation(len(labels))
    if by_shards:
        # what does not fill a shard is left out; it is random after the shuffle
        shard_size = len(order) // num_parts
        order = order[: shard_size * num_parts]

    partitioner = _partitioner(how, num_devices, seed, alpha, shards_per_device)
    samples = {"sample": order, "label": labels.numpy()[order]}
    partitioner.dataset = imported("datasets", "examples").Dataset.from_dict(samples)
    try:
        return _shares(partitioner, num_devices)
    except ValueError as error:
        raise ValueError(
            f"{how!r} leaves one of {num_devices} devices without samples; "
            "raise its alpha"
        ) from error


def _partitioner(
    how: str, num_devices: int, seed: int, alpha: float, shards_per_device: int
) -> Any:
    kinds = imported("flwr_datasets.partitioner", "examples")
    if how == "iid":
        return kinds.IidPartitioner(num_devices)
    if how == "dirichlet":
        return kinds.DirichletPartitioner(
            num_devices, "label", alpha=float(alpha), min_partition_size=1, seed=seed
        )
    return kinds.ShardPartitioner(
        num_devices, "label", num_shards_per_partition=shards_per_device, seed=seed
    )


def _shares(partitioner: Any, num_devices: int) -> list[Indices]:
    shares = []
    with warnings.catch_warnings():
        # how `datasets` asks pyarrow to sort; nothing a user can change
        warnings.filterwarnings("ignore", "Specifying null_placement", FutureWarning)
        for device in range(num_devices):
            samples = partitioner.load_partition(device)["sample"]
            shares.append(np.asarray(samples, np.int64))
    return shares
