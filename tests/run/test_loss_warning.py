"""A warning of a loss that does not fall."""

import logging
from collections.abc import Iterable

import pytest

from flwr_splitfc.exchange import Ledger, Traffic
from flwr_splitfc.run import Progress


def warnings_of(
    caplog: pytest.LogCaptureFixture, losses: Iterable[float | None]
) -> list[tuple[int, str]]:
    """The warnings in a run whose rounds have these losses, each with its round."""
    ledger = Ledger()
    progress = Progress(1000, ledger)
    warnings = []
    for number, loss in enumerate(losses, 1):
        rows = 0 if loss is None else 8
        traffic = Traffic(loss_sum=8 * (loss or 0.0), loss_rows=rows)
        ledger.add(number, "train", traffic, "0")
        caplog.clear()
        progress.end_round(number, {}, {})
        warnings += [
            (number, record.getMessage())
            for record in caplog.records
            if record.levelno == logging.WARNING
        ]
    return warnings


def test_a_loss_that_stays_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    ((number, warning),) = warnings_of(caplog, 60 * [2.31, 2.29])
    assert number == 80
    assert (
        "last 40 rounds is 2.3000 on average, that of the first 40 was 2.3" in warning
    )


@pytest.mark.parametrize(
    "losses",
    [
        79 * [2.3],
        [2.3 - 0.002 * number for number in range(200)],
        60 * [2.3] + 100 * [1.0],
        200 * [None],
        # learned at once, and then as good as it gets
        5 * [2.3] + 200 * [0.01],
    ],
)
def test_one_that_falls_is_not(
    losses: list[float | None], caplog: pytest.LogCaptureFixture
) -> None:
    assert not warnings_of(caplog, losses)


def test_rounds_in_which_no_device_told_it_do_not_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ((number, _),) = warnings_of(caplog, 80 * [2.3, None])
    assert number == 159
