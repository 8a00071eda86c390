"""The soak, for two minutes. For half an hour: python -m tests.soak."""

from pathlib import Path

import pytest

from tests.soak.soak import soak


@pytest.mark.slow
def test_two_minutes(tmp_path: Path) -> None:
    soak(minutes=2.0, seed=0, folder=tmp_path)
    assert (tmp_path / "soak.png").stat().st_size
