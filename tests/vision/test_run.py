"""What a run-config's keys give a device."""

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from flwr_splitfc.vision import (
    device_images,
    evaluate,
    evaluate_on_test_set,
    load_data,
    load_dataset,
)

CONFIG = {
    "dataset": "digits",
    "num-devices": 20,
    "partitioner": "shards",
    "batch-size": 16,
    "steps-per-turn": 3,
}


def context(device: int = 0, **changes: str | int) -> Context:
    config = {
        **CONFIG,
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    return Context(1, 1, {"partition-id": device}, RecordDict(), config)


def test_every_device_has_a_share_of_its_own() -> None:
    shares = [device_images(CONFIG, device) for device in range(20)]
    assert [len(share) for share in shares] == 20 * [70]
    train = torch.cat([share.images for share in shares])
    assert len(train.flatten(1).unique(dim=0)) == 1400
    with pytest.raises(ValueError, match="device 20 has no share: num-devices is 20"):
        device_images(CONFIG, 20)


def test_a_turn_draws_its_steps_and_evaluation_is_one_pass() -> None:
    train, own = load_data(context(device=3))
    assert [len(labels) for _, labels in train] == 3 * [16]
    assert [len(labels) for _, labels in own] == [16]  # of the test set
    epoch, _ = load_data(context(device=3, steps_per_turn=0))
    assert [len(labels) for _, labels in epoch] == [16, 16, 16, 16, 6]


def test_devices_share_the_test_set_as_they_share_the_training_set() -> None:
    tests = [device_images(CONFIG, device, test=True) for device in range(20)]
    assert (
        len(torch.cat([share.images for share in tests]).flatten(1).unique(dim=0))
        == 20 * 16
    )
    known = [
        torch.isin(own.labels, device_images(CONFIG, device).labels)
        for device, own in enumerate(tests)
    ]
    assert torch.cat(known).float().mean() > 0.8, "of two classes in ten"
    ((_, labels),) = load_data(context(device=3))[1]
    assert torch.equal(labels.sort().values, tests[3].labels.sort().values)


def test_more_devices_than_test_images_train_all_the_same() -> None:
    train, own = load_data(context(num_devices=400, partitioner="iid"))
    assert len(next(iter(train))[0]) == 16
    with pytest.raises(ValueError, match="400 devices cannot share 359 samples"):
        next(iter(own))


def test_augmentation_is_for_training_alone() -> None:
    train, own = load_data(context(), augment=torch.zeros_like)
    assert not any(images.any() for images, _ in train)
    assert all(images.any() for images, _ in own)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("batch_size", 0, "batch-size is 0, wanted 1 or more"),
        ("steps_per_turn", -1, "steps-per-turn is -1, wanted 0 or more"),
        (
            "partitioner",
            "by-name",
            "partitioner is 'by-name', wanted one of dirichlet, iid, shards",
        ),
        ("num_devices", "20", "num-devices is '20', wanted int"),
        ("dataset", 3, "dataset is 3, wanted str"),
    ],
)
def test_keys_that_are_wrong_are_named(key: str, value: str | int, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        load_data(context(**{key: value}))


def test_central_evaluation_is_on_the_test_set() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert evaluate_on_test_set(model, context()) == evaluate(
        model, load_dataset("digits")[1]
    )
