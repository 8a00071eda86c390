"""Devices in turn: one a round, or the next few."""

from collections.abc import Iterable
from logging import getLogger
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from flwr_splitfc.exchange.server.grid.devices import Devices, turn_order
from flwr_splitfc.exchange.server.grid.flower_messages import failure_of
from flwr_splitfc.exchange.server.grid.metered_grid import MeteredGrid
from flwr_splitfc.exchange.server.grid.split_grid import SplitGrid
from flwr_splitfc.strategy.added_changes import add_changes
from flwr_splitfc.strategy.waiting import wait_for_devices

logger = getLogger("flwr")


class RoundRobin(FedAvg):
    """Devices take turns: one trains in a round, and its model is handed to the next.

    The order is that of the devices' names (see `flwr_splitfc.exchange.device_name`;
    partitions by their number), and the first round is the first device's. A device
    that fails loses its turn; the model stays as it was. Evaluation samples and
    averages as in `FedAvg`.

    Parameters
    ----------
    turns_at_once : int (default: 1)
        How many turns a round has, those of the next devices in the order, or of all if
        there are fewer. These devices train at the same time, each from the model that
        the round before left. What each has changed in it is added to it; averages that
        batch normalisation keeps of batches are averaged. So a change is late by less
        than `turns_at_once` turns.
    min_available_nodes : int (default: 2)
        Devices to wait for before the first turn; give it the number of devices, so
        that the order is the same in each run. Later turns go to those that are there.
    **fedavg_options
        Other parameters as in `FedAvg`; those about sampling for training mean nothing
        here. A `train_metrics_aggr_fn` gets the metrics of a single turn, too.
    """

    def __init__(
        self,
        *,
        turns_at_once: int = 1,
        min_available_nodes: int = 2,
        **fedavg_options: Any,
    ) -> None:
        if turns_at_once < 1:
            raise ValueError(f"turns_at_once is {turns_at_once}, wanted 1 or more")
        # FedAvg's own default is two, which a run with one device would wait for
        fedavg_options.setdefault("min_evaluate_nodes", 1)
        super().__init__(min_available_nodes=min_available_nodes, **fedavg_options)
        # FedAvg's own function drops the weights, and an average may round
        own_metrics = fedavg_options.get("train_metrics_aggr_fn")
        self._has_own_metrics = own_metrics is not None
        self.turns_at_once = turns_at_once
        self._sent = ArrayRecord()
        self._devices: Devices | None = None
        self._complete_once: Grid | None = None

    def summary(self) -> None:
        """Log the settings."""
        logger.info("\t├──> Devices take turns, in the order of their names")
        if self.turns_at_once > 1:
            logger.info("\t├──> Turns at once: %d", self.turns_at_once)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message to each device whose turn it is."""
        # FedAvg's way to train nothing
        if self.fraction_train == 0.0:
            return []
        self._sent = arrays
        config["server-round"] = server_round
        record = RecordDict(
            {self.arrayrecord_key: arrays, self.configrecord_key: config}
        )
        return [
            Message(record, node_id, MessageType.TRAIN)
            for node_id in self._turns(server_round, grid)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the device's arrays and metrics, untouched.

        Of several devices these are the start with all their changes, and the averages
        of their metrics. Metrics go through the `train_metrics_aggr_fn` that was given.
        Both are None if every turn failed.
        """
        trained = []
        for reply in replies:
            if reply.has_error():
                self._report(reply)
            else:
                trained.append(reply.content)
        if not trained:
            return None, None
        if len(trained) > 1:
            return self._together(trained)
        arrays = trained[0].array_records.values()
        return next(iter(arrays), None), self._metrics_of_one(trained[0])

    def _metrics_of_one(self, trained: RecordDict) -> MetricRecord | None:
        if self._has_own_metrics:
            return self.train_metrics_aggr_fn([trained], self.weighted_by_key)
        return next(iter(trained.metric_records.values()), None)

    def _together(self, trained: list[RecordDict]) -> tuple[ArrayRecord, MetricRecord]:
        models = [next(iter(each.array_records.values())) for each in trained]
        metrics = self.train_metrics_aggr_fn(trained, self.weighted_by_key)
        return add_changes(self._sent, models), metrics

    def _report(self, reply: Message) -> None:
        # grids of this package report failures themselves, by the devices' names
        if not isinstance(self._complete_once, MeteredGrid):
            node_id = reply.metadata.src_node_id
            logger.warning("Turn of node %d failed: %s", node_id, failure_of(reply))

    def _turns(self, server_round: int, grid: Grid) -> list[int]:
        """Return the node ids of the devices whose turn it is in a round."""
        order = self._order(grid)
        count = min(self.turns_at_once, len(order))
        first = (server_round - 1) * count
        return [order[turn % len(order)] for turn in range(first, first + count)]

    def _order(self, grid: Grid) -> list[int]:
        """Return the node ids in the order of their turns, once enough are there."""
        num_devices = max(self.min_available_nodes, 1)
        # later turns go to those that are left
        if self._complete_once is grid:
            num_devices = 1
        nodes = wait_for_devices(grid, num_devices, "min_available_nodes")
        self._complete_once = grid
        return turn_order(self._devices_of(grid).names(nodes))

    def _devices_of(self, grid: Grid) -> Devices:
        """Return the devices of a grid, each of which is asked for its name once."""
        if isinstance(grid, SplitGrid):
            return grid.devices
        if self._devices is None or self._devices.grid is not grid:
            self._devices = Devices(grid)
        return self._devices
