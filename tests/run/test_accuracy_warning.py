"""A warning of an accuracy that is a percentage."""

import logging
from typing import Any

import pytest

from flwr_splitfc.exchange import Ledger
from flwr_splitfc.run import Progress


def warnings_of(
    caplog: pytest.LogCaptureFixture, server: dict[str, Any], devices: dict[str, Any]
) -> list[str]:
    """The warnings in a run of three rounds that find this."""
    progress = Progress(3, Ledger())
    for number in (1, 2, 3):
        progress.end_round(number, server, devices)
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING
    ]


@pytest.mark.parametrize(
    ("server", "devices"),
    [
        ({"accuracy": 93.0}, {}),
        ({}, {"eval_acc": 93.0}),
        ({"accuracy": 0.93}, {"eval_acc": 93.0}),
    ],
    ids=str,
)
def test_a_percentage_is_warned_of_once(
    server: dict[str, Any], devices: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (warning,) = warnings_of(caplog, server, devices)
    assert "accuracy of round 1 is 93, and is taken for a share, of 9300.0%" in warning


@pytest.mark.parametrize("accuracy", [0.0, 0.93, 1, 1 + 1e-15, float("nan")])
def test_a_share_is_not(accuracy: float, caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings_of(caplog, {"accuracy": accuracy}, {"loss": 93.0})
