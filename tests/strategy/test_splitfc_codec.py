"""Which codec `SplitFC` has, by the settings that it is given."""

from typing import Any

import pytest

from flwr_splitfc.codec import cut_codec
from flwr_splitfc.strategy.splitfc import splitfc_codec

PAPER = {"uplink_bits": 0.2, "downlink_bits": 0.4}


@pytest.mark.parametrize(
    ("settings", "name", "quality"),
    [
        ({}, "splitfc-rd", 0.0),
        ({"quality": 20}, "splitfc-rd", 20),
        ({"quality": 0, "uplink_bits": 0.5}, "splitfc-rd", 0),
        ({"uplink_bits": 0.2}, "splitfc", None),
        ({"reduction": 8}, "splitfc", None),
        ({"quality": 20, "reduction": 1}, "splitfc", 20),
        ({"quality": None, "uplink_bits": None, "reduction": None}, "splitfc-rd", 0.0),
    ],
)
def test_by_its_settings(
    settings: dict[str, Any], name: str, quality: float | None
) -> None:
    codec = splitfc_codec(**settings)
    assert (codec.name, codec.quality) == (name, quality)


def test_the_papers_is_what_its_name_alone_means() -> None:
    assert splitfc_codec(**PAPER) == cut_codec("splitfc")
