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


# Folders and files of which some take half a minute or more.
LONGEST = {
    "processes",
    "soak",
    "test_benchmarks.py",
    "test_docs.py",
    "test_quickstart_run.py",
    "test_rerun.py",
    "test_tutorial.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first: what runs in parallel then ends with short files, about together."""
    items.sort(key=lambda item: LONGEST.isdisjoint(item.path.parts))


@pytest.fixture(autouse=True)
def own_random_numbers() -> None:
    """What a test draws does not depend on the tests that ran before it."""
    random.seed(0)
    torch.manual_seed(0)
