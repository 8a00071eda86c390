"""A warning where a few columns are so large that the others arrive as noise."""

import pytest
import torch

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.exchange import SplitEndpoint
from flwr_splitfc.exchange.device import scale_warning
from tests.exchange.server_halves import shared_half
from tests.halves import DeviceHalf, batches, seeded
from tests.local_grid import ticket_message


@pytest.fixture(autouse=True)
def no_warning_yet() -> None:
    """As in a new process."""
    scale_warning._warn.cache_clear()


def warnings_of_turns(
    caplog: pytest.LogCaptureFixture,
    largest: float,
    turns: int = 1,
    **settings: str | float,
) -> list[str]:
    """Train on features of which a few are `largest` times as large as the others."""
    x, y = batches(1)[0]
    features = seeded(DeviceHalf)(x).detach()
    scales = torch.ones(features[0].numel())
    scales[::20] = largest
    scaled = features * scales.view(features.shape[1:])
    with SplitEndpoint(shared_half(), cut_codec(settings)) as endpoint:
        for _ in range(turns):
            with connect(ticket_message(endpoint)) as session:
                session.loss(scaled.clone().requires_grad_(), y).backward()
    return [line for line in caplog.messages if "features' columns" in line]


def test_columns_that_are_lost_beside_larger_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    budgets = {"uplink_bits": 2.0, "downlink_bits": 4.0}
    warnings = warnings_of_turns(caplog, 1e4, turns=3, name="splitfc-rd", **budgets)
    assert len(warnings) == 1
    assert "more than half of the features' columns arrive as noise" in warnings[0]


@pytest.mark.parametrize(
    ("largest", "settings"),
    [
        (1.0, {"name": "splitfc-rd"}),
        (5.0, {"name": "splitfc-rd"}),
        # levelled
        (1e4, {"name": "splitfc-rd"}),
        (1e4, {"name": "float32"}),
        # all columns are coarse, and the error shows it
        (1.0, {"name": "splitfc-rd", "uplink_bits": 1.0, "downlink_bits": 4.0}),
    ],
)
def test_no_warning(
    caplog: pytest.LogCaptureFixture, largest: float, settings: dict[str, str | float]
) -> None:
    assert not warnings_of_turns(caplog, largest, **settings)
