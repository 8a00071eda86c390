"""CelebA's example on drawn faces in the files of the download: real lists and pictures, shared by identity."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from PIL import Image
from torchvision import datasets

from flwr_splitfc.vision import evaluate
from splitceleba import faces
from splitceleba.faces import decoded_test_set, device_faces, faces_of, share_identities
from splitceleba.task import evaluate_on_test_split, halves, load_data
from tests.examples.drawn_faces import write_faces


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture
def config(root: Path) -> Iterator[dict[str, Any]]:
    yield {
        "data-dir": str(root),
        "num-devices": 5,
        "identities-per-device": 2,
        "image-size": 32,
        "min-pictures": 10,
    }
    for cache in (
        faces.load_faces,
        faces._shares_once,
        faces._decoded_once,
        faces._remembered,
    ):
        cache.cache_clear()


def test_torchvisions_own_class_refuses_lists_that_are_not_its_download(
    root: Path,
) -> None:
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        datasets.CelebA(str(root))
    assert len(faces.CelebA(str(root), split="train", download=False)) == 16 * 10 - 5


def test_md5_sums_are_still_those_of_a_download(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        datasets.CelebA, "download", lambda self: asked.append(self.file_list)
    )
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        faces.CelebA(str(root), split="train", download=True)
    assert asked == [datasets.CelebA.file_list]


def test_the_label_is_the_attribute_and_the_pixels_are_the_pictures(
    config: dict[str, Any], root: Path
) -> None:
    train = faces_of(config, "train")
    lines = (root / "celeba" / "list_attr_celeba.txt").read_text().splitlines()[2:]
    listed = {line.split()[0]: int(line.split()[2] == "1") for line in lines}
    assert train.labels.tolist() == [listed[name] for name in train.names]
    assert 0 < train.labels.sum() < len(train)

    images, labels = train[torch.tensor([7, 3])]
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == train.labels[[7, 3]].tolist()
    picture = Image.open(root / "celeba" / "img_align_celeba" / train.names[7]).crop(
        (0, 20, 178, 198)
    )
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    assert (images[0].mean((1, 2)) - pixels.mean((1, 2))).abs().max() < 0.01


def test_a_device_has_all_pictures_of_its_celebrities_and_no_others(
    config: dict[str, Any],
) -> None:
    train = faces_of(config, "train")
    shares = [device_faces(config, device) for device in range(5)]
    seen = [set(share.identities.tolist()) for share in shares]
    assert all(len(own) == 2 for own in seen)
    assert len(set.union(*seen)) == 10
    for share, own in zip(shares, seen, strict=True):
        assert (
            len(share)
            == sum(int((train.identities == identity).sum()) for identity in own)
            == 20
        )
    with pytest.raises(ValueError, match="device 5 has no share: num-devices is 5"):
        device_faces(config, 5)


def test_celebrities_with_few_pictures_are_left_out() -> None:
    identities = torch.tensor([4, 4, 9, 4, 7, 9, 7, 7, 2])
    assert [
        share.tolist()
        for share in sorted(share_identities(identities, 2, 1, 3, seed=0), key=min)
    ] == [[0, 1, 3], [4, 6, 7]]
    (share,) = share_identities(identities, 1, 3, 2, seed=0)
    assert share.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(
        ValueError,
        match=r"wanted are 3 celebrities with min-pictures = 3 or more, and there are 2",
    ):
        share_identities(identities, 3, 1, 3, seed=0)


def test_the_seed_draws_the_celebrities() -> None:
    identities = torch.arange(200) // 5
    first, again, other = (
        np.array(share_identities(identities, 4, 3, 5, seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_only_what_a_batch_asks_for_is_decoded_and_once(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda path: opened.append(Path(path).name) or real(path)
    )
    own = device_faces(config, 0)
    assert opened == []
    for indices in (torch.tensor([4, 4, 0]), torch.tensor([0, 1])):
        own[indices]
    assert opened == [own.names[4], own.names[0], own.names[1]]


def test_test_set_is_the_test_split(config: dict[str, Any]) -> None:
    test = decoded_test_set(config)
    assert len(test) == 4 * 10 - 2
    assert test.images.dtype == torch.uint8
    assert torch.equal(
        test[torch.arange(38)][0], faces_of(config, "test")[torch.arange(38)][0]
    )
    assert decoded_test_set(config) is test


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"attribute": "Sad"},
            "attribute is 'Sad', wanted one of Bald, Smiling, Young",
        ),
        ({"data-dir": "faces"}, "data-dir is 'faces'; .* absolute path"),
        ({"data-dir": "/"}, "CelebA cannot be read from data-dir /: Dataset not found"),
        ({"image-size": 16}, "image-size is 16, wanted 32 or more"),
        ({"num-devices": 9}, "num-devices is 9 and identities-per-device 2"),
        ({"min-pictures": 11}, "min-pictures = 11 or more, and there are 0"),
    ],
)
def test_keys_that_are_wrong_are_named(
    config: dict[str, Any], changes: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        device_faces({**config, **changes}, 0)


def test_lists_that_do_not_belong_together_are_refused(
    config: dict[str, Any], tmp_path: Path
) -> None:
    folder = (
        write_faces(tmp_path, train_identities=2, test_identities=1, pictures=2)
        / "celeba"
    )
    (folder / "identity_CelebA.txt").write_text("000001.jpg 1\n")
    with pytest.raises(ValueError, match="CelebA cannot be read from data-dir"):
        faces_of({**config, "data-dir": str(tmp_path)}, "train")


@pytest.mark.parametrize(
    ("size", "cut"), [(32, (24, 4, 4)), (64, (24, 8, 8)), (128, (24, 16, 16))]
)
def test_halves_fit_and_normalise_without_the_batch(
    size: int, cut: tuple[int, int, int]
) -> None:
    device, server = halves()
    assert not any(
        isinstance(layer, torch.nn.BatchNorm2d)
        for half in (device, server)
        for layer in half.modules()
    )
    pictures = torch.rand(3, 3, size, size)
    features = device(pictures)
    assert features.shape == (3, *cut)
    assert server(features).shape == (3, 2)
    assert torch.allclose(features[:1], device(pictures[:1]), atol=1e-5)


@pytest.mark.extended
def test_smiles_can_be_learnt_and_told_on_celebrities_never_seen(
    config: dict[str, Any],
) -> None:
    context = Context(
        1,
        1,
        {"partition-id": 0},
        RecordDict(),
        {**config, "steps-per-turn": 9, "batch-size": 20},
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(*halves())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    accuracies = []
    for _ in range(3):
        for device in range(5):
            context.node_config["partition-id"] = device
            for x, y in load_data(context)[0]:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        found = evaluate_on_test_split(model, context)
        accuracies.append(found["accuracy"])
    # 0.94 to 1 over ten seeds and two thread counts; now and then it falls for a while;
    # one class of the two: 0.58
    assert max(accuracies) > 0.8
    assert found == evaluate(model, decoded_test_set(config))
