"""The soak, for minutes. For half an hour: python -m tests.soak."""

from pathlib import Path

import pytest

from tests.soak.soak import soak


@pytest.mark.parametrize(
    "minutes",
    [
        pytest.param(0.1, marks=pytest.mark.extended, id="each-leg-once"),
        pytest.param(2.0, marks=pytest.mark.slow, id="two-minutes"),
    ],
)
def test_honest_turns_among_hostile_ones(minutes: float, tmp_path: Path) -> None:
    soak(minutes=minutes, seed=0, folder=tmp_path)
    assert (tmp_path / "soak.png").stat().st_size
