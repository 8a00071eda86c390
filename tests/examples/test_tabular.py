"""The table's example: real patients by age, a number for each, and R squared."""

from itertools import pairwise

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from splittable.diabetes import AGE, device_patients, load_patients
from splittable.task import (
    evaluate_on_test_set,
    load_data,
    make_device_half,
    make_server_half,
    make_tail,
)


def context(**config: bool | int) -> Context:
    return Context(1, 1, {"partition-id": 1}, RecordDict(), config)


def test_devices_have_patients_of_one_age_each() -> None:
    train, test = load_patients()
    assert (len(train), len(test)) == (354, 88)
    shares = [device_patients({"num-devices": 5}, device) for device in range(5)]
    assert [len(share) for share in shares] == [71, 71, 71, 71, 70]
    ages = [share.measurements[:, AGE] for share in shares]
    assert all(young.max() <= old.min() for young, old in pairwise(ages))
    found = torch.cat([share.progressions for share in shares]).sort(dim=0).values
    assert torch.equal(found, train.progressions.sort(dim=0).values)
    assert train.progressions.mean().item() == pytest.approx(0, abs=1e-6)
    assert train.progressions.std(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("num_devices", "device", "error"),
    [
        (5, 5, "device 5 has no share: num-devices is 5"),
        (355, 0, "there are 354 patients"),
        (0, 0, "num-devices is 0"),
    ],
)
def test_shares_that_cannot_be(num_devices: int, device: int, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        device_patients({"num-devices": num_devices}, device)


def test_halves_fit_with_and_without_the_last_layer() -> None:
    x, y = next(iter(load_data(context())[0]))
    features = make_device_half()(x)
    assert features.shape == (64, 512)
    assert make_server_half(context())(features).shape == y.shape == (64, 1)
    assert make_tail()(
        make_server_half(context(**{"u-shaped": True}))(features)
    ).shape == (64, 1)


def test_r_squared_is_0_for_the_mean_and_1_for_the_truth() -> None:
    _, test = load_patients()
    model = nn.Linear(10, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(test.progressions.mean())
    mean = evaluate_on_test_set(model, context())
    assert mean["r2"] == pytest.approx(0, abs=1e-6)
    assert mean["loss"] == pytest.approx(test.progressions.var(correction=0).item())
    assert model.training

    design = torch.cat([test.measurements, torch.ones(88, 1)], dim=1)
    fitted = torch.linalg.lstsq(design, test.progressions).solution
    with torch.no_grad():
        model.weight.copy_(fitted[:10].T)
        model.bias.copy_(fitted[10])
    residual = (test.progressions - design @ fitted).square().sum() / 88
    assert evaluate_on_test_set(model, context())["loss"] == pytest.approx(
        residual.item(), rel=1e-4
    )
    assert evaluate_on_test_set(model, context())["r2"] > 0.4
