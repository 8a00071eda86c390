"""Quiet, single-threaded, offline: what every test needs before Flower and torch are imported."""

import os

# Processes that tests start inherit these.
os.environ.update(
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_TELEMETRY_ENABLED="0",
    RAY_ADDRESS="local",  # never another cluster of the machine
    RAY_USAGE_STATS_ENABLED="0",
)

import random

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# How long examples take to make or to run, on a busy machine or by bad luck, is no fault of the code.
hypothesis.settings.register_profile(
    "flwr-splitfc",
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.filter_too_much,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("flwr-splitfc")


@pytest.fixture(autouse=True)
def own_random_numbers() -> None:
    """What a test draws does not depend on the tests that ran before it."""
    random.seed(0)
    torch.manual_seed(0)
