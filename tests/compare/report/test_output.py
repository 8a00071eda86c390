"""The files of a comparison, as others read them."""

import json
import math
from pathlib import Path

import pytest

from flwr_splitfc.compare.report.output import write
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.runs import Outcome
from tests.compare.conftest import finished

LINK = RadioLink.parse("up=10,down=50,rtt=40")


def _refuse(word: str) -> None:
    pytest.fail(f"JSON has no word {word}")


def test_the_results_are_json_whatever_the_settings(tmp_path: Path) -> None:
    run, outcome = finished("splitfc", (0.2, 0.4), 0, [0.5])
    assert outcome.results is not None
    settings = {"seed": 0, "limit": math.inf, "other": math.nan}
    results = {**outcome.results, "run_config": settings}
    failed = finished("fedavg", None, 0, [])[0], Outcome("failed", "by chance")
    outcomes = [(run, Outcome("finished", results=results)), failed]
    write(tmp_path, "app", outcomes, LINK)
    text = (tmp_path / "results.json").read_text()
    first, second = json.loads(text, parse_constant=_refuse)["runs"]
    assert first["results"]["run_config"] == {
        "seed": 0,
        "limit": {"float": "inf"},
        "other": {"float": "nan"},
    }
    assert second["results"] is None
