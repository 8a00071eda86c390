"""Warnings of errors at the cut with which runs do not learn."""

import logging

import pytest

from flwr_splitfc import cut_codec
from flwr_splitfc.exchange import Ledger, Traffic
from flwr_splitfc.run import Progress

Errors = list[tuple[float | None, float | None]]


def warnings_of(
    caplog: pytest.LogCaptureFixture,
    codec: str,
    errors: Errors,
    *,
    output_codec: str | None = None,
    **settings: float,
) -> list[str]:
    """The warnings in a run whose rounds have these errors of features and gradients."""
    ledger = Ledger()
    made = cut_codec(codec, **settings)
    of_output = cut_codec(output_codec) if output_codec else None
    progress = Progress(len(errors), ledger, codec=made, output_codec=of_output)
    with caplog.at_level(logging.INFO, "flwr"):
        for number, (of_features, of_gradients) in enumerate(errors, 1):
            traffic = Traffic(
                feature_error_sum=of_features or 0.0,
                feature_error_steps=int(of_features is not None),
                gradient_error_sum=of_gradients or 0.0,
                gradient_error_steps=int(of_gradients is not None),
            )
            ledger.add(number, "train", traffic, "0")
            progress.end_round(number, {}, {})
    levels = [record.levelno for record in caplog.records]
    assert levels.count(logging.INFO) == len(errors)
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING
    ]


def test_it_warns_once_of_features_and_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (warning,) = warnings_of(caplog, "top-s", 30 * [(1.6, 0.01)])
    assert warning == (
        "Little can be learned: for 10 rounds the squared error of the features, "
        "relative to how they vary, has been above 50% (round 10: 160%). "
        "Raise uplink_bits or quality."
    )


def test_it_warns_of_gradients(caplog: pytest.LogCaptureFixture) -> None:
    (warning,) = warnings_of(caplog, "quant-only", 10 * [(0.1, 0.8)])
    assert "of the gradients, relative to their size, has been above 70%" in warning
    assert "Raise downlink_bits or quality." in warning


def test_rounds_that_measured_nothing_do_not_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured = [(1.6, 0.01), (None, None)]
    assert warnings_of(caplog, "top-s", 9 * measured) == []
    caplog.clear()
    (warning,) = warnings_of(caplog, "top-s", 10 * measured)
    assert "(round 19: 160%)" in warning


def test_the_first_rounds_may_be_coarse(caplog: pytest.LogCaptureFixture) -> None:
    errors: Errors = [*(9 * [(0.9, 0.9)]), (0.1, 0.1), *(9 * [(0.9, 0.9)])]
    assert warnings_of(caplog, "quant-only", errors) == []


def test_features_that_are_scaled_for_dropped_ones_may_be_far_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors: Errors = 10 * [(14.0, 0.01)]
    assert warnings_of(caplog, "splitfc", errors, reduction=16) == []
    caplog.clear()
    assert len(warnings_of(caplog, "splitfc", errors, reduction=1)) == 1
    caplog.clear()
    (warning,) = warnings_of(caplog, "splitfc", 10 * [(17.0, 0.01)], reduction=16)
    assert warning.startswith("Perhaps little can be learned")
    assert "Lower reduction" in warning


def test_with_last_layers_on_devices_it_warns_of_both_cuts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors: Errors = 10 * [(0.96, 0.75)]
    up, down = warnings_of(caplog, "float32", errors, output_codec="splitfc-rd")
    assert up == (
        "Perhaps little can be learned: for 10 rounds the squared error of the "
        "features, relative to how they vary, or of the output's gradients, relative "
        "to their size, has been above 50% (round 10: 96%). "
        "Raise uplink_bits or quality of codec or output_codec."
    )
    assert "of the output, relative to how it varies, or of the gradients" in down
    assert "(round 10: 75%). Raise downlink_bits or quality of codec" in down


@pytest.mark.parametrize("output_codec", ["float32", "splitfc", "top-s"])
def test_a_second_cut_hides_no_error_of_the_first(
    output_codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    errors: Errors = 10 * [(0.6, 0.95)]
    assert len(warnings_of(caplog, "top-s", errors, output_codec=output_codec)) == 2
