"""Images by the name of their data set: what is accepted, in what form it comes, and what is refused."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flwr_splitfc.extras import imported
from flwr_splitfc.vision import DatasetSpec, load_dataset, partition

DIGITS = DatasetSpec(channels=1, image_size=8, num_classes=10)
MNIST = DatasetSpec(channels=1, image_size=28, num_classes=10)


class RandomImages:
    """As torchvision's classes are called and read; 40 samples of 10 classes."""

    pixels: torch.Tensor | np.ndarray = torch.randint(
        0, 256, (40, 28, 28), dtype=torch.uint8
    )

    def __init__(
        self,
        root: str,
        train: bool = True,
        transform: object = None,
        download: bool = False,
    ) -> None:
        self.data, self.targets = self.pixels, [index % 10 for index in range(40)]


class ColourImages(RandomImages):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


class PilImages:
    """No `.data`: pairs of an image and a class, read one by one."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        from PIL import Image

        self.pairs = [
            (Image.fromarray(RandomImages.pixels[index].numpy()), index % 10)
            for index in range(40)
        ]

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.pairs[index]


class MissingData(RandomImages):
    def __init__(self, root: str, train: bool, download: bool) -> None:
        raise RuntimeError(
            "Dataset not found. You can use download=True to download it"
        )


class NamedSplit:
    def __init__(
        self, root: str, split: str = "train", download: bool = False
    ) -> None: ...


class WrongScale(RandomImages):
    pixels = 255 * torch.rand(40, 28, 28)


@pytest.fixture
def local_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above under dotted paths, `local_images.<name>`, and no data sets remembered."""
    monkeypatch.setitem(sys.modules, "local_images", SimpleNamespace(**globals()))
    load_dataset.cache_clear()


def test_digits() -> None:
    train, test = load_dataset("digits")
    assert (len(train), len(test)) == (1438, 359)
    assert train.spec == test.spec == DIGITS
    assert train.images.dtype == torch.float32
    assert train.labels.dtype == torch.int64
    assert (train.images.min(), train.images.max()) == (0, 1)
    assert load_dataset("digits")[0] is train


@pytest.mark.usefixtures("local_classes")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("RandomImages", (40, 1, 28, 28)),
        ("ColourImages", (40, 3, 32, 32)),
        ("PilImages", (40, 1, 28, 28)),
    ],
)
def test_torchvision_style(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    train, test = load_dataset(f"local_images.{name}", str(tmp_path))
    assert train.images.shape == test.images.shape == shape
    assert train.images.is_contiguous()
    assert train.labels.tolist() == [index % 10 for index in range(40)]
    assert train.num_classes == 10
    pixels = torch.as_tensor(
        ColourImages.pixels if name == "ColourImages" else RandomImages.pixels
    )
    first = pixels[0].permute(2, 0, 1) if name == "ColourImages" else pixels[:1]
    assert train.images.dtype == torch.uint8
    assert torch.equal(train[0][0], first[0:3] / 255)


@pytest.mark.usefixtures("local_classes")
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("mnist", "unknown dataset 'mnist': use 'digits' or the dotted path"),
        (
            "no_such_module.MNIST",
            r"'no_such_module.MNIST' cannot be imported \(No module",
        ),
        ("local_images.Missing", "'local_images.Missing' cannot be imported"),
        (
            "local_images.NamedSplit",
            r"cannot be called as cls\(root=, train=, download=\)",
        ),
        (
            "local_images.MissingData",
            "cannot be read from data-dir .*Dataset not found",
        ),
        ("local_images.WrongScale", r"wanted uint8, or floats in \[0, 1\]"),
    ],
)
def test_dataset_that_does_not_work(name: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=error):
        load_dataset(name, str(tmp_path), download=False)


@pytest.mark.usefixtures("local_classes")
def test_data_dir_that_does_not_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data-dir is 'data'; .* absolute path"):
        load_dataset("local_images.RandomImages", "data")
    with pytest.raises(
        FileNotFoundError, match=r"absent does not exist; .* download=true"
    ):
        load_dataset(
            "local_images.RandomImages", str(tmp_path / "absent"), download=False
        )


@pytest.mark.skipif(
    "SPLITFC_DATA_DIR" not in os.environ,
    reason="SPLITFC_DATA_DIR names no folder with MNIST/raw",
)
def test_mnist() -> None:
    train, test = load_dataset(
        "torchvision.datasets.MNIST", os.environ["SPLITFC_DATA_DIR"], download=False
    )
    assert (len(train), len(test), train.spec) == (60_000, 10_000, MNIST)
    shares = partition(train.labels, num_devices=30, how="shards")
    assert {len(share) for share in shares} == {2000}
    load_dataset.cache_clear()


@pytest.mark.parametrize(
    "name", ["sklearn.datasets", "torchvision.datasets", "flwr_datasets.partitioner"]
)
def test_what_is_not_installed_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ModuleNotFoundError,
        match=rf"{name} cannot be imported .*pip install 'flwr-splitfc\[examples\]'",
    ):
        imported(name, "examples")
    if name.startswith("torchvision"):
        with pytest.raises(ValueError, match=r"pip install 'flwr-splitfc\[examples\]'"):
            load_dataset("torchvision.datasets.MNIST", "/")
