"""The example's task: halves that every process builds alike, data by name, shares that cover it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from splitmnist import task
from splitmnist.task import DatasetSpec, LabelledImages, device_half, partition, server_half

DIGITS = DatasetSpec(channels=1, image_size=8, num_classes=10)
MNIST = DatasetSpec(channels=1, image_size=28, num_classes=10)
CIFAR = DatasetSpec(channels=3, image_size=32, num_classes=10)


class RandomImages:
    """As torchvision's classes are called and read; 40 samples of 10 classes."""

    pixels: torch.Tensor | np.ndarray = torch.randint(0, 256, (40, 28, 28), dtype=torch.uint8)

    def __init__(self, root: str, train: bool = True, transform: object = None, download: bool = False) -> None:
        self.data, self.targets = self.pixels, [index % 10 for index in range(40)]


class ColourImages(RandomImages):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


class PilImages:
    """No `.data`: pairs of an image and a class, read one by one."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        from PIL import Image

        self.pairs = [(Image.fromarray(RandomImages.pixels[index].numpy()), index % 10) for index in range(40)]

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.pairs[index]


class MissingData(RandomImages):
    def __init__(self, root: str, train: bool, download: bool) -> None:
        raise RuntimeError("Dataset not found. You can use download=True to download it")


class NamedSplit:
    def __init__(self, root: str, split: str = "train", download: bool = False) -> None: ...


class WrongScale(RandomImages):
    pixels = 255 * torch.rand(40, 28, 28)


@pytest.fixture
def local_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above under dotted paths, `local_images.<name>`, and no data sets remembered."""
    monkeypatch.setitem(sys.modules, "local_images", SimpleNamespace(**globals()))
    task.load_dataset.cache_clear()


# The model


@pytest.mark.parametrize(
    ("spec", "cut"), [(DIGITS, (32, 6, 6)), (MNIST, (32, 6, 6)), (CIFAR, (32, 7, 7))], ids=["digits", "mnist", "cifar"]
)
def test_halves_fit(spec: DatasetSpec, cut: tuple[int, int, int]) -> None:
    features = device_half(spec, seed=0)(torch.rand(5, spec.channels, spec.image_size, spec.image_size))
    assert features.shape == (5, *cut)
    assert server_half(spec, seed=0)(features).shape == (5, 10)


def test_mnist_model_is_the_published_setting() -> None:
    shapes = [tuple(weight.shape) for half in (device_half, server_half) for weight in half(MNIST, 0).parameters()]
    assert shapes == [(16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (128, 1152), (128,), (10, 128), (10,)]


@pytest.mark.parametrize("image_size", [1, 2])
def test_images_too_small_for_a_cut(image_size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size is {image_size}: .* 3 x 3"):
        server_half(DatasetSpec(1, image_size, 10), seed=0)


CHECKSUM = """
from splitmnist.task import DatasetSpec, device_half, server_half
import torch
torch.rand(7)
print(*[weight.double().sum().item() for half in (device_half, server_half)
        for weight in half(DatasetSpec(1, 28, 10), seed=3).parameters()])
"""


def test_halves_are_equal_in_every_process() -> None:
    app = str(Path(task.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", CHECKSUM], env=os.environ | {"PYTHONPATH": app}, capture_output=True, text=True
    )
    here = [w.double().sum().item() for half in (device_half, server_half) for w in half(MNIST, seed=3).parameters()]
    assert [float(number) for number in found.stdout.split()] == here, found.stderr


def test_seed_decides_and_the_global_generator_stays() -> None:
    before = torch.get_rng_state()
    assert not torch.equal(device_half(MNIST, seed=0)[0].weight, device_half(MNIST, seed=1)[0].weight)
    assert torch.equal(torch.get_rng_state(), before)


# The data


def test_digits() -> None:
    train, test = task.load_dataset("digits")
    assert (len(train), len(test)) == (1438, 359)
    assert train.spec == test.spec == DIGITS
    assert train.images.dtype == torch.float32
    assert train.labels.dtype == torch.int64
    assert (train.images.min(), train.images.max()) == (0, 1)
    assert task.load_dataset("digits")[0] is train


@pytest.mark.usefixtures("local_classes")
@pytest.mark.parametrize(
    ("name", "shape"),
    [("RandomImages", (40, 1, 28, 28)), ("ColourImages", (40, 3, 32, 32)), ("PilImages", (40, 1, 28, 28))],
)
def test_torchvision_style(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    train, test = task.load_dataset(f"local_images.{name}", str(tmp_path))
    assert train.images.shape == test.images.shape == shape
    assert train.images.is_contiguous()
    assert train.labels.tolist() == [index % 10 for index in range(40)]
    assert train.num_classes == 10
    pixels = torch.as_tensor(ColourImages.pixels if name == "ColourImages" else RandomImages.pixels)
    first = pixels[0].permute(2, 0, 1) if name == "ColourImages" else pixels[:1]
    assert torch.equal(train.images[0], first[0:3] / 255)


@pytest.mark.usefixtures("local_classes")
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("mnist", "unknown dataset 'mnist': use 'digits' or the dotted path"),
        ("no_such_module.MNIST", r"'no_such_module.MNIST' cannot be imported \(No module"),
        ("local_images.Missing", "'local_images.Missing' cannot be imported"),
        ("local_images.NamedSplit", r"cannot be called as cls\(root=, train=, download=\)"),
        ("local_images.MissingData", "cannot be read from data-dir .*Dataset not found"),
        ("local_images.WrongScale", r"wanted uint8, or floats in \[0, 1\]"),
    ],
)
def test_dataset_that_does_not_work(name: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=error):
        task.load_dataset(name, str(tmp_path), download=False)


@pytest.mark.usefixtures("local_classes")
def test_data_dir_that_does_not_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data-dir is 'data'; .* absolute path"):
        task.load_dataset("local_images.RandomImages", "data")
    with pytest.raises(FileNotFoundError, match=r"absent does not exist; .* download=true"):
        task.load_dataset("local_images.RandomImages", str(tmp_path / "absent"), download=False)


@pytest.mark.skipif("SPLITFC_DATA_DIR" not in os.environ, reason="SPLITFC_DATA_DIR names no folder with MNIST/raw")
def test_mnist() -> None:
    train, test = task.load_dataset("torchvision.datasets.MNIST", os.environ["SPLITFC_DATA_DIR"], download=False)
    assert (len(train), len(test), train.spec) == (60_000, 10_000, MNIST)
    shares = partition(train.labels, num_devices=30, how="shards")
    assert {len(share) for share in shares} == {2000}
    task.load_dataset.cache_clear()


# The shares


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
    first, again, other = (partition(label_tensor(), 20, how, seed=seed) for seed in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


@pytest.mark.parametrize(("num_samples", "used"), [(1438, 1400), (1439, 1400), (79, 40), (40, 40)])
def test_shards_are_equal_and_leave_less_than_one_sample_per_shard(num_samples: int, used: int) -> None:
    shares = partition(label_tensor(num_samples), num_devices=20, how="shards")
    assert {len(share) for share in shares} == {used // 20}
    assert len(np.unique(np.concatenate(shares))) == used


@pytest.mark.parametrize("shards_per_device", [1, 2, 3])
def test_shards_hold_few_labels(shards_per_device: int) -> None:
    labels = label_tensor()
    shares = partition(labels, 20, "shards", shards_per_device=shards_per_device)
    assert max(len(labels[share].unique()) for share in shares) <= 2 * shards_per_device
    # Ten classes have nine borders, and a border gives one shard one label more.
    assert sum(len(labels[share].unique()) for share in shares) <= 20 * shards_per_device + 9


def test_iid_shares_hold_every_label_and_dirichlet_ones_do_not() -> None:
    labels = label_tensor()
    assert all(len(labels[share].unique()) == 10 for share in partition(labels, 10, "iid"))
    assert any(len(labels[share].unique()) < 10 for share in partition(labels, 10, "dirichlet", alpha=0.1))


@pytest.mark.parametrize(
    ("num_devices", "settings", "error"),
    [
        (20, {"how": "by-name"}, "unknown partitioner 'by-name': use one of dirichlet, iid, shards"),
        (0, {"how": "iid"}, "0 devices cannot share 100 samples by 'iid'"),
        (101, {"how": "dirichlet"}, "101 devices cannot share 100 samples"),
        (51, {"how": "shards"}, "51 devices cannot share 100 samples by 'shards' with 2 shards each"),
        (20, {"how": "shards", "shards_per_device": 0}, "with 0 shards each"),
        (5, {"how": "dirichlet", "alpha": 0.0}, "greater than zero"),
    ],
)
def test_shares_that_cannot_be(num_devices: int, settings: dict[str, str | float], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        partition(label_tensor(100), num_devices, **settings)


@pytest.mark.filterwarnings("ignore:The specified min_partition_size")
def test_dirichlet_that_leaves_a_device_empty() -> None:
    with pytest.raises(ValueError, match="'dirichlet' leaves one of 90 devices without samples; raise its alpha"):
        partition(label_tensor(100), 90, "dirichlet", alpha=0.001)


# A turn


def images(num_samples: int) -> LabelledImages:
    """Each image is filled with its index, each label is the index."""
    index = torch.arange(num_samples)
    return LabelledImages(index.float().reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8), index, num_samples)


def test_epoch_holds_every_sample_once() -> None:
    batches = list(task.train_loader(images(70), batch_size=32))
    assert [len(labels) for _, labels in batches] == [32, 32, 6]
    assert len(batches) == len(task.train_loader(images(70), batch_size=32))
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() != list(range(70))
    assert labels.sort().values.tolist() == list(range(70))


def test_steps_per_turn_draws_with_replacement() -> None:
    batches = list(task.train_loader(images(5), batch_size=32, steps_per_turn=3))
    assert [tuple(pixels.shape) for pixels, _ in batches] == 3 * [(32, 1, 8, 8)]
    assert all(torch.equal(pixels[:, 0, 0, 0], labels.float()) for pixels, labels in batches)


@pytest.mark.parametrize("steps", [0, 3])
def test_batches_follow_the_global_generator(steps: int) -> None:
    loader = task.train_loader(images(70), 8, steps)
    torch.manual_seed(5)
    first = torch.cat([labels for _, labels in loader])
    assert not torch.equal(torch.cat([labels for _, labels in loader]), first)
    torch.manual_seed(5)
    assert torch.equal(torch.cat([labels for _, labels in loader]), first)


@pytest.mark.parametrize(("batch_size", "steps"), [(0, 1), (8, -1)])
def test_batches_that_cannot_be(batch_size: int, steps: int) -> None:
    with pytest.raises(ValueError, match=f"batch-size is {batch_size} and steps-per-turn {steps}"):
        task.train_loader(images(9), batch_size, steps)


def test_evaluate_is_independent_of_its_batches_and_keeps_the_mode() -> None:
    _, test = task.load_dataset("digits")
    model = nn.Sequential(device_half(DIGITS, 0), nn.Dropout(), server_half(DIGITS, 0)).train()
    whole, parts = task.evaluate(model, test), task.evaluate(model, test, batch_size=100)
    logits = model.eval()(test.images)
    assert whole["accuracy"] == parts["accuracy"] == (logits.argmax(1) == test.labels).double().mean().item()
    assert whole["loss"] == pytest.approx(parts["loss"])
    assert whole["loss"] == pytest.approx(nn.functional.cross_entropy(logits, test.labels).item())
    assert task.evaluate(model.train(), test)
    assert model.training


def test_the_apps_own_config_gives_every_device_its_data() -> None:
    pyproject = Path(task.__file__).parents[1] / "pyproject.toml"
    config = tomllib.loads(pyproject.read_text())["tool"]["flwr"]["app"]["config"]
    shares = [task.device_data(config, device) for device in range(config["num-devices"])]
    assert [len(share) for share in shares] == 20 * [70]
    assert shares[0].spec == DIGITS
    with pytest.raises(ValueError, match="device 20 has no share: num-devices is 20"):
        task.device_data(config, 20)
