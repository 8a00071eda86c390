"""How devices share a labelled training set."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from flwr_splitfc.settings import check_choice
from flwr_splitfc.vision.extra import extra_module
from flwr_splitfc.vision.images import Indices


def partition(
    labels: Tensor,
    num_devices: int,
    how: str = "shards",
    *,
    seed: int = 0,
    alpha: float = 0.5,
    shards_per_device: int = 2,
) -> list[Indices]:
    """Which training samples each device has, by the partitioners of `flwr_datasets`.

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
    """
    check_choice("partitioner", how, sorted(_PARTITIONERS))
    least = num_devices * (shards_per_device if how == "shards" else 1)
    if not 1 <= least <= len(labels):
        raise ValueError(
            f"{num_devices} devices cannot share {len(labels)} samples by {how!r}"
            + (f" with {shards_per_device} shards each" if how == "shards" else "")
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    if how == "shards":
        order = order[: len(order) // least * least]
    partitioner = _PARTITIONERS[how](
        extra_module("flwr_datasets.partitioner"),
        num_devices,
        seed,
        alpha,
        shards_per_device,
    )
    samples = {"sample": order, "label": labels.numpy()[order]}
    partitioner.dataset = extra_module("datasets").Dataset.from_dict(samples)
    try:
        # how `datasets` asks pyarrow to sort; nothing a user can change
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Specifying null_placement", FutureWarning
            )
            return [
                np.asarray(partitioner.load_partition(device)["sample"], np.int64)
                for device in range(num_devices)
            ]
    except ValueError as error:
        raise ValueError(
            f"{how!r} leaves one of {num_devices} devices without samples; raise its alpha"
        ) from error


def _iid(
    kinds: Any, num_devices: int, seed: int, alpha: float, shards_per_device: int
) -> Any:
    return kinds.IidPartitioner(num_devices)


def _dirichlet(
    kinds: Any, num_devices: int, seed: int, alpha: float, shards_per_device: int
) -> Any:
    return kinds.DirichletPartitioner(
        num_devices, "label", alpha=float(alpha), min_partition_size=1, seed=seed
    )


def _shards(
    kinds: Any, num_devices: int, seed: int, alpha: float, shards_per_device: int
) -> Any:
    return kinds.ShardPartitioner(
        num_devices, "label", num_shards_per_partition=shards_per_device, seed=seed
    )


_PARTITIONERS: dict[str, Callable[[Any, int, int, float, int], Any]] = {
    "dirichlet": _dirichlet,
    "iid": _iid,
    "shards": _shards,
}
