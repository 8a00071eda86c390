"""A run that goes on sends devices the configs that it had made of those given."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from flwr_splitfc import SplitClientApp
from flwr_splitfc.strategy import CheckpointError
from flwr_splitfc.strategy.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from tests.halves import DeviceHalf, batches, same, seeded
from tests.local_grid import LocalGrid
from tests.strategy.test_checkpoint import ADAM, make


class Scheduled(FedAvg):
    """Changes its configs in place, as Flower's example `advanced-pytorch` does."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round == 2:
            # NumPy's number is a float, and no checkpoint takes it
            config["learning-rate"] = np.float64(config["learning-rate"] * 0.5)
            config["steps"][0] += 1
            config["key"] = b"\x00\xff"
        return super().configure_train(server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["evaluated"] = config.get("evaluated", 0) + 1
        return super().configure_evaluate(server_round, arrays, config, grid)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def given(rate: float = 0.1) -> ConfigRecord:
    return ConfigRecord({"learning-rate": rate, "steps": [1, 2], "name": "digits"})


def configs_of(
    folder: Path | None, rounds: int, config: ConfigRecord | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What the device got to train and to evaluate by, and the model of the run."""
    app = SplitClientApp(DeviceHalf, lambda context: (batches(1), batches(1)), ADAM)
    got = []

    def noted(message: Message, context: Context) -> Message:
        for record in message.content.config_records.values():
            if "server-round" in record:
                got.append({**record, "type": message.metadata.message_type})
        return app(message, context)

    devices = Scheduled(min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1)
    strategy = make(folder, devices)
    result = strategy.start(
        LocalGrid(noted, 1),
        ArrayRecord(seeded(DeviceHalf).state_dict()),
        rounds,
        train_config=given() if config is None else config,
    )
    return got, strategy.joined_state_dict(result.arrays)


def without_tickets(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = {"learning-rate", "steps", "key", "name", "evaluated", "server-round"}
    return [{key: one[key] for key in wanted & one.keys()} for one in configs]


def test_a_schedule_goes_on_where_the_run_was_stopped(tmp_path: Path) -> None:
    whole, model = configs_of(None, 5)
    first, _ = configs_of(tmp_path, 3)
    second, _ = configs_of(tmp_path, 4)
    third, resumed = configs_of(tmp_path, 5)
    assert without_tickets(first + second + third) == without_tickets(whole)
    assert [one["learning-rate"] for one in whole if "key" in one] == [0.05] * 4
    assert same(resumed, model)


def test_a_record_that_the_run_has_changed_is_the_one_that_it_was_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where one process starts several times, and a later one with a fresh record."""
    config = given()
    first, _ = configs_of(tmp_path, 2, config)
    second, _ = configs_of(tmp_path, 3, config)
    third, _ = configs_of(tmp_path, 4)
    whole, _ = configs_of(None, 4)
    assert without_tickets(first + second + third) == without_tickets(whole)
    assert "the run began with" not in caplog.text


def test_another_config_counts_as_it_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configs_of(tmp_path, 2)
    assert "the run began with" not in caplog.text
    got, _ = configs_of(tmp_path, 3, given(rate=0.4))
    assert got[0]["learning-rate"] == 0.4
    assert "train_config is {'learning-rate': 0.4" in caplog.text
    assert "the run began with {'learning-rate': 0.1" in caplog.text
    # the other config goes on
    assert got[1]["evaluated"] == 3
    # from now on that is the run's
    caplog.clear()
    again, _ = configs_of(tmp_path, 4, given(rate=0.4))
    assert again[0]["learning-rate"] == 0.4
    assert "the run began with" not in caplog.text


def test_a_checkpoint_without_configs_is_gone_on_from(tmp_path: Path) -> None:
    """As those of versions before this one are."""
    configs_of(tmp_path, 2)
    state = load_checkpoint(tmp_path)
    assert state is not None
    del state["configs"]
    save_checkpoint(tmp_path, state)
    got, _ = configs_of(tmp_path, 3)
    assert got[0]["server-round"] == 3
    assert got[0]["learning-rate"] == 0.1


RIGHT = ConfigRecord({"learning-rate": 0.1}).deflate()


@pytest.mark.parametrize(
    "configs",
    [
        None,
        {},
        {"at_start": {}, "now": {}},
        {"now": {"train_config": RIGHT, "evaluate_config": RIGHT}},
        *(
            {
                "at_start": {"train_config": RIGHT, "evaluate_config": RIGHT},
                "now": {"train_config": RIGHT, "evaluate_config": wrong},
            }
            for wrong in (b"wrong", RIGHT[:-3], 3, "text", {"learning-rate": 0.1}, None)
        ),
    ],
)
def test_a_checkpoint_with_what_are_no_configs_is_refused(
    configs: Any, tmp_path: Path
) -> None:
    configs_of(tmp_path, 1)
    state = load_checkpoint(tmp_path)
    assert state is not None
    save_checkpoint(tmp_path, {**state, "configs": configs})
    before = checkpoint_path(tmp_path).read_bytes()
    config = given()
    with pytest.raises(CheckpointError, match="does not fit this run"):
        configs_of(tmp_path, 2, config)
    assert config == given()
    assert checkpoint_path(tmp_path).read_bytes() == before


def test_a_dict_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"train_config is {'lr': 0.1}, wanted a C"):
        configs_of(None, 1, {"lr": 0.1})  # type: ignore[arg-type]
