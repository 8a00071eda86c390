"""The page that adds a codec: its file, its example, and a run that names it."""

import doctest
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from flwr_splitfc import PayloadError, SplitClientApp, SplitServerApp
from flwr_splitfc.codec import catalogue, codec_names
from tests.halves import DeviceHalf, ServerHalf, batches
from tests.local_grid import LocalGrid

PAGE = (Path(__file__).parents[1] / "docs" / "add-a-codec.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILE = next(text for _, text in BLOCKS if text.startswith("# sign_quant.py"))
EXAMPLE = next(text for _, text in BLOCKS if text.startswith(">>>"))
RUN_CONFIG = next(text for _, text in BLOCKS if text.startswith("strategy ="))


@pytest.fixture
def sign_quant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page's file, imported; its name is gone from the catalogue afterwards."""
    (tmp_path / "sign_quant.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(catalogue, "CATALOGUE", dict(catalogue.CATALOGUE))
    yield importlib.import_module("sign_quant")
    del sys.modules["sign_quant"]


def test_the_file_has_less_than_40_lines_of_code() -> None:
    assert sum(bool(line.strip()) for line in FILE.splitlines()) < 40


def test_the_example_of_the_page(sign_quant: ModuleType) -> None:
    example = doctest.DocTestParser().get_doctest(
        EXAMPLE, {"torch": torch}, "add-a-codec.md", None, None
    )
    assert doctest.DocTestRunner().run(example).failed == 0
    assert "sign" in codec_names()


def test_the_quantiser_refuses_bytes_of_another_shape(sign_quant: ModuleType) -> None:
    quantiser = sign_quant.SignQuant()
    payload = quantiser.encode(torch.randn(5, 7), 0)
    assert quantiser.decode(memoryview(payload), 5, 7).shape == (5, 7)
    with pytest.raises(PayloadError, match="no 6 x 7 signs"):
        quantiser.decode(memoryview(payload), 6, 7)


def test_a_run_config_names_the_codec_and_its_settings(
    sign_quant: ModuleType, tmp_path: Path
) -> None:
    results = run(tomllib.loads(RUN_CONFIG), tmp_path / "results")
    assert results["codec"]["name"] == "sign"
    assert results["codec"]["spread"] == 0.8
    # One bit an entry, and 64 bits a column in batches of 64 rows.
    assert [row["uplink_bits_per_entry"] for row in results["rounds"]] == [2.0] * 3
    assert all(row["steps"] == 5 for row in results["rounds"])


def run(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The results of three turns of two devices."""

    def load_data(context: Context) -> Any:
        data = batches(5, rows=64, seed=context.node_config["partition-id"])
        return data, data

    adam = partial(torch.optim.Adam, lr=1e-3)
    server = SplitServerApp(DeviceHalf, ServerHalf, nn.CrossEntropyLoss(), adam)
    grid = LocalGrid(SplitClientApp(DeviceHalf, load_data, adam), 2, workers=1)
    settings = {"results-dir": str(folder), "num-devices": 2, **config}
    server(grid, Context(1, 1, {}, RecordDict(), settings))
    return json.loads((folder / "results.json").read_text())
