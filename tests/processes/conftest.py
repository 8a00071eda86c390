"""Runs that tests of a module share: they start processes, which end with the module."""

from collections.abc import Iterator

import pytest

from tests.processes.flwr_run import Deployment, FlwrRun


@pytest.fixture(scope="module")
def flwr_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlwrRun]:
    """Runs in the simulation engine."""
    run = FlwrRun(tmp_path_factory)
    yield run
    run.end()


@pytest.fixture(scope="module")
def deployed_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Runs on a SuperLink with as many SuperNodes as the test's parameter says."""
    run = Deployment(tmp_path_factory, num_nodes=request.param)
    try:
        for index in range(run.num_nodes):
            run.start_node(index)
        yield run
    finally:
        run.end()


@pytest.fixture(scope="module")
def secure_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Runs on a SuperLink with TLS, and two SuperNodes that authenticate themselves and name budgets."""
    run = Deployment(tmp_path_factory, num_nodes=2, secure=True)
    try:
        for index, uplink_bits in enumerate((0.1, 0.8)):
            run.start_node(index, f"uplink-bits={uplink_bits}")
        yield run
    finally:
        run.end()
