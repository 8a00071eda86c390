"""One device a round."""

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

from flwr_splitfc.exchange.server.devices import Devices, turn_order
from flwr_splitfc.exchange.server.flower_messages import failure_of
from flwr_splitfc.exchange.server.metered_grid import MeteredGrid
from flwr_splitfc.exchange.server.split_grid import SplitGrid
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
    min_available_nodes : int (default: 2)
        Devices to wait for before the first turn; give it the number of devices, so
        that the order is the same in each run. Later turns go to those that are there.
    **fedavg_options
        Other parameters as in `FedAvg`; those about sampling for training mean nothing
        here.
    """

    def __init__(self, *, min_available_nodes: int = 2, **fedavg_options: Any) -> None:
        # FedAvg's own default is two, which a run with one device would wait for
        fedavg_options.setdefault("min_evaluate_nodes", 1)
        super().__init__(min_available_nodes=min_available_nodes, **fedavg_options)
        self._devices: Devices | None = None
        self._complete_once: Grid | None = None

    def summary(self) -> None:
        """Log the settings."""
        logger.info("\t├──> Devices take turns, in the order of their names")
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message, to the device whose turn it is."""
        # FedAvg's way to train nothing
        if self.fraction_train == 0.0:
            return []
        order = self._order(grid)
        node_id = order[(server_round - 1) % len(order)]
        config["server-round"] = server_round
        record = RecordDict(
            {self.arrayrecord_key: arrays, self.configrecord_key: config}
        )
        return [Message(record, node_id, MessageType.TRAIN)]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the device's arrays and metrics, untouched.

        Both are None if its turn failed.
        """
        for reply in replies:
            if reply.has_error():
                self._report(reply)
                continue
            arrays = reply.content.array_records.values()
            metrics = reply.content.metric_records.values()
            return next(iter(arrays), None), next(iter(metrics), None)
        return None, None

    def _report(self, reply: Message) -> None:
        # grids of this package report failures themselves, by the devices' names
        if not isinstance(self._complete_once, MeteredGrid):
            node_id = reply.metadata.src_node_id
            logger.warning("Turn of node %d failed: %s", node_id, failure_of(reply))

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
