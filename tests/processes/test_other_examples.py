"""The other examples in the simulation engine: on pictures drawn for the test, real text, a real table.

The bounds of losses were measured in one process, over ten seeds and two thread counts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.examples.drawn_faces import write_faces

pytestmark = [pytest.mark.extended, pytest.mark.simulation]

ROOT = Path(__file__).parents[2]
Run = Callable[..., dict[str, Any]]


@pytest.mark.slow
def test_celeba_from_the_files_of_the_download_to_results(
    flwr_run: Run, tmp_path: Path
) -> None:
    """The lists, pictures and command are a user's; only the faces are drawn."""
    settings = {
        "data-dir": str(write_faces(tmp_path)),
        "identities-per-device": 4,
        "image-size": 32,
        "batch-size": 20,
    }
    settings |= {
        "num-rounds": 4,
        "evaluate-every": 2,
        "uplink-bits": 4.0,
        "downlink-bits": 4.0,
    }
    results = flwr_run(ROOT / "strategies" / "splitfc.toml", app="celeba", **settings)
    rounds = results["rounds"]
    assert [row["accuracy"] is None for row in rounds] == [True, False, True, False]
    assert all(
        row["steps"] == 5 and 2 < row["uplink_bits_per_entry"] <= 4 for row in rounds
    )
    assert results["run_config"]["attribute"] == "Smiling"


def test_cifar10_with_a_data_set_class_by_its_path(
    flwr_run: Run, tmp_path: Path
) -> None:
    settings = {
        "dataset": "tests.examples.drawn_shapes.DrawnShapes",
        "data-dir": str(tmp_path),
        "width": 0.125,
        "num-rounds": 4,
        "evaluate-every": 2,
        "steps-per-turn": 20,
        "batch-size": 16,
        "partitioner": "iid",
    }
    results = flwr_run(
        ROOT / "strategies" / "split-learning.toml", app="cifar10", **settings
    )
    rounds = results["rounds"]
    assert rounds[3]["loss"] < rounds[0]["loss"]  # 0.32 to 0.69
    assert [row["accuracy"] is None for row in rounds] == [True, False, True, False]
    assert all(
        row["steps"] == 20 and row["uplink_bits_per_entry"] == 32 for row in rounds
    )


def test_transformer_whose_last_layers_and_labels_stay_on_the_devices(
    flwr_run: Run,
) -> None:
    settings = {
        "num-rounds": 4,
        "evaluate-every": 2,
        "width": 16,
        "context-length": 16,
        "device-precision": "bfloat16",
    }
    results = flwr_run(
        ROOT / "strategies" / "u-shaped.toml", app="transformer", **settings
    )
    rounds, traffic = results["rounds"], results["traffic"]["train"]
    assert rounds[3]["loss"] < rounds[0]["loss"]  # 0.79 to 0.82
    assert rounds[3]["accuracy"] is not None
    assert traffic["uplink_bytes"]["labels"] == 0
    assert traffic["output_entries"] == traffic["entries"] == 4 * 5 * 32 * 16 * 16
    assert results["output_codec"]["name"] == "float32"


@pytest.mark.slow
def test_tabular_with_numbers_for_labels(flwr_run: Run) -> None:
    settings = {
        "num-rounds": 8,
        "evaluate-every": 4,
        "steps-per-turn": 20,
        "learning-rate": 1e-2,
    }
    results = flwr_run(ROOT / "strategies" / "splitfc.toml", app="tabular", **settings)
    rounds = results["rounds"]
    # patients of a device are of one age, so rounds are compared over all four devices
    losses = [row["loss"] for row in rounds]
    assert sum(losses[4:]) < sum(losses[:4])  # 0.73 to 0.86
    assert all(row["steps"] == 20 and row["accuracy"] is None for row in rounds)
    assert all(0.1 < row["uplink_bits_per_entry"] <= 0.2 for row in rounds)
    assert " MB | r2 " in results["log"]
    assert ["evaluation" in row for row in rounds] == 2 * [False, False, False, True]
