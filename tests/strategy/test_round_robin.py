"""Devices in turn: whose metrics go through a function of one's own."""

from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import nn

from flwr_splitfc import RoundRobin, SplitClientApp, SplitLearning
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import LocalGrid

SGD = partial(torch.optim.SGD, lr=0.1)


def metrics_of(**options: Any) -> MetricRecord:
    """The metrics of training of a run of one round with three devices."""
    devices = RoundRobin(min_available_nodes=3, fraction_evaluate=0.0, **options)
    strategy = SplitLearning(
        seeded(ServerHalf), nn.CrossEntropyLoss(), SGD, devices=devices, device="cpu"
    )
    app = SplitClientApp(DeviceHalf, lambda context: (batches(2), []), SGD)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    result = strategy.start(LocalGrid(app, 3), arrays, 1)
    return result.train_metrics_clientapp[1]


@pytest.mark.parametrize("turns_at_once", [1, 2])
def test_a_function_of_ones_own_gets_the_metrics_of_every_turn(
    turns_at_once: int,
) -> None:
    def own(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
        samples = [reply["metrics"][weighted_by] for reply in replies]
        return MetricRecord({"turns": len(replies), "samples": sum(samples)})

    metrics = metrics_of(turns_at_once=turns_at_once, train_metrics_aggr_fn=own)
    assert metrics["turns"] == turns_at_once
    assert metrics["samples"] == 2 * 16 * turns_at_once


@pytest.mark.parametrize("options", [{}, {"train_metrics_aggr_fn": None}])
def test_without_one_the_metrics_of_a_turn_stay_as_they_are(
    options: dict[str, Any],
) -> None:
    assert metrics_of(**options)["num-examples"] == 2 * 16
