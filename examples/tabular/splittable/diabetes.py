"""Scikit-learn's diabetes table, and devices that have patients of one age each."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from flwr_splitfc.settings import RunConfig, check_least, read_settings

AGE = 0  # its column


@dataclass(frozen=True)
class TableSettings:
    """How devices share the patients, in a run-config."""

    num_devices: int = 2

    def __post_init__(self) -> None:
        check_least(self, num_devices=1)


@dataclass(frozen=True, eq=False)
class Patients:
    """Measurements, and how far the disease had gone a year later.

    Parameters
    ----------
    measurements : Tensor
        float32 (N, 10), each column with mean 0 and norm 1 over all patients.
    progressions : Tensor
        float32 (N, 1), in standard deviations of the training set, from its mean.
    """

    measurements: Tensor
    progressions: Tensor

    def __len__(self) -> int:
        return len(self.progressions)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.measurements[indices], self.progressions[indices]


@lru_cache(maxsize=1)
def load_patients() -> tuple[Patients, Patients]:
    """Return a fixed split, 354 patients to train and 88 to test."""
    table, progressions = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(table))
    num_test = len(table) // 5
    test = order[:num_test]
    train = order[num_test:]
    mean = progressions[train].mean()
    deviation = progressions[train].std()
    everyone = Patients(
        torch.from_numpy(table).float(),
        torch.from_numpy((progressions - mean) / deviation).float()[:, None],
    )
    return (
        Patients(*everyone[torch.from_numpy(train)]),
        Patients(*everyone[torch.from_numpy(test)]),
    )


def device_patients(config: RunConfig, device: int) -> Patients:
    """Return the training patients of device number `device` (its partition-id).

    Patients are sorted by age, and devices have equal shares.
    """
    num_devices = read_settings(TableSettings, config).num_devices
    train, _ = load_patients()
    if num_devices > len(train):
        raise ValueError(
            f"num-devices is {num_devices}, "
            f"and there are {len(train)} patients to share"
        )
    if not 0 <= device < num_devices:
        raise ValueError(
            f"device {device} has no share: num-devices is {num_devices}, "
            "start as many SuperNodes"
        )
    by_age = train.measurements[:, AGE].argsort(stable=True)
    share = by_age.tensor_split(num_devices)[device]
    return Patients(*train[share])
