"""CelebA's pictures with one attribute as their label.

Devices have some celebrities each.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import datasets

from flwr_splitfc.settings import RunConfig, check_least, read_settings
from flwr_splitfc.vision import LabelledImages
from flwr_splitfc.vision.data_folder import data_folder
from flwr_splitfc.vision.images import Indices

REMEMBERED_PICTURES = 2**14  # by a process, of its devices: 200 MB at 64 x 64


class CelebA(datasets.CelebA):  # type: ignore[misc]  # torchvision has no types
    """torchvision's class, which compares md5 sums only with what it downloads itself.

    The sums protect a download from Google Drive. torchvision also demands them, on
    each start, of files that were put there by hand, and so refuses any other version
    of the lists: fewer pictures, or drawn ones. Its own way to say "no sum" is None;
    that the files exist is checked as before.
    """

    def __init__(self, root: str, *, download: bool, **options: Any) -> None:
        if not download:
            self.file_list = [
                (file_id, None, name) for file_id, _, name in datasets.CelebA.file_list
            ]
        super().__init__(root, download=download, **options)


@dataclass(frozen=True)
class FaceSettings:
    """Which faces devices learn from, in a run-config.

    Parameters
    ----------
    data_dir : str
        The folder that holds ``celeba/``, an absolute path.
    download : bool
        Whether torchvision may download what is missing (1.4 GB; it needs ``gdown``).
    attribute : str
        One of CelebA's forty, such as "Smiling": the label.
    image_size : int
        Pictures are cropped about their middle to a square and scaled to so many
        pixels.
    identities_per_device : int
        Celebrities on a device; with 1 a device is a celebrity, as in LEAF
        (https://arxiv.org/abs/1812.01097).
    min_pictures : int
        Celebrities with fewer pictures are left out, as in LEAF.
    """

    data_dir: str = ""
    download: bool = False
    attribute: str = "Smiling"
    image_size: int = 64
    num_devices: int = 2
    identities_per_device: int = 10
    min_pictures: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(
            self, image_size=32, num_devices=1, identities_per_device=1, min_pictures=1
        )


@dataclass(frozen=True, eq=False)
class Faces:
    """Pictures in files, decoded when a batch asks for them.

    Parameters
    ----------
    folder : Path
    names : list of str
        The files in `folder`, N of them.
    labels : Tensor
        1 where the picture has the attribute, int64 (N,).
    identities : Tensor
        Numbers of the celebrities, int64 (N,).
    """

    folder: Path
    names: list[str]
    labels: Tensor
    identities: Tensor
    image_size: int

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        pictures = [self._picture(index) for index in indices.tolist()]
        return torch.stack(pictures).float().div_(255), self.labels[indices]

    def _picture(self, index: int) -> Tensor:
        return _remembered(self.folder / self.names[index], self.image_size)

    def subset(self, indices: Indices) -> "Faces":
        """Return the faces at `indices`, in that order."""
        chosen = torch.from_numpy(indices)
        return Faces(
            self.folder,
            [self.names[index] for index in indices],
            self.labels[chosen],
            self.identities[chosen],
            self.image_size,
        )

    def decoded(self) -> LabelledImages:
        """Return all of them in memory."""
        pictures = [decode(self.folder / name, self.image_size) for name in self.names]
        return LabelledImages(torch.stack(pictures), self.labels, num_classes=2)


def decode(path: Path, image_size: int) -> Tensor:
    """Return a picture's pixels, uint8 (3, image_size, image_size)."""
    with Image.open(path) as picture:
        square = ImageOps.fit(picture.convert("RGB"), (image_size, image_size))
    pixels = torch.from_numpy(np.array(square))  # (H, W, C)
    return pixels.permute(2, 0, 1).contiguous()


_remembered = lru_cache(maxsize=REMEMBERED_PICTURES)(decode)


def faces_of(config: RunConfig, split: str) -> Faces:
    """Return CelebA's ``train``, ``valid`` or ``test`` split, as a run-config says."""
    settings = read_settings(FaceSettings, config)
    return load_faces(
        settings.data_dir,
        split,
        settings.attribute,
        settings.image_size,
        settings.download,
    )


@lru_cache(maxsize=2)
def load_faces(
    data_dir: str, split: str, attribute: str, image_size: int, download: bool
) -> Faces:
    """Return a split, whose lists a process reads once; no picture is opened."""
    root = data_folder("CelebA", data_dir, download)
    try:
        data = CelebA(str(root), split=split, download=download)
    # absent, not downloaded, or no such lists
    except (OSError, RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
            f"CelebA cannot be read from data-dir {root}: {error}"
        ) from error
    attributes = [name for name in data.attr_names if name]
    if attribute not in attributes:
        raise ValueError(
            f"attribute is {attribute!r}, wanted one of {', '.join(attributes)}"
        )
    return Faces(
        root / CelebA.base_folder / "img_align_celeba",
        list(data.filename),
        # copies, or the lists of all attributes would stay in memory
        labels=data.attr[:, attributes.index(attribute)].clone(),
        identities=data.identity[:, 0].clone(),
        image_size=image_size,
    )


def share_identities(
    identities: Tensor,
    num_devices: int,
    identities_per_device: int,
    min_pictures: int,
    seed: int,
) -> list[Indices]:
    """Return which pictures each device has: all of its celebrities'.

    A celebrity is on one device at most; who is on which is drawn by `seed`.
    """
    celebrities, counts = np.unique(identities.numpy(), return_counts=True)
    enough = celebrities[counts >= min_pictures]
    wanted = num_devices * identities_per_device
    if len(enough) < wanted:
        raise ValueError(
            f"num-devices is {num_devices} and identities-per-device "
            f"{identities_per_device}: wanted are {wanted} celebrities with "
            f"min-pictures = {min_pictures} or more, and there are {len(enough)}"
        )
    drawn = np.random.default_rng(seed).permutation(enough)[:wanted]
    shares = []
    for own in drawn.reshape(num_devices, identities_per_device):
        shares.append(np.flatnonzero(np.isin(identities.numpy(), own)))
    return shares


def device_faces(config: RunConfig, device: int) -> Faces:
    """Return the pictures of device number `device` (its partition-id).

    They are of CelebA's training split.
    """
    settings = read_settings(FaceSettings, config)
    train = faces_of(config, "train")
    shares = _shares_once(
        train,
        settings.num_devices,
        settings.identities_per_device,
        settings.min_pictures,
        settings.seed,
    )
    if not 0 <= device < len(shares):
        raise ValueError(
            f"device {device} has no share: num-devices is {len(shares)}, "
            "start as many SuperNodes"
        )
    return train.subset(shares[device])


@lru_cache(maxsize=1)
def _shares_once(train: Faces, *how: int) -> list[Indices]:
    return share_identities(train.identities, *how)


@lru_cache(maxsize=1)
def _decoded_once(faces: Faces) -> LabelledImages:
    return faces.decoded()


def decoded_test_set(config: RunConfig) -> LabelledImages:
    """Return CelebA's test split, decoded once: 245 MB at 64 x 64."""
    return _decoded_once(faces_of(config, "test"))
