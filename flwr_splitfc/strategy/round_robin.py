"""One device a round."""

import time
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
from flwr_splitfc.exchange.server.split_grid import SplitGrid

_WAIT_S = 0.1
_LOG_WAIT_S = 10.0

logger = getLogger("flwr")


class RoundRobin(FedAvg):
    """Devices take turns: one trains in a round, and its model is handed to the next.

    The order is that of the devices' names (see `flwr_splitfc.device_name`; partitions
    by their number), and the first round is the first device's. A device that fails
    loses its turn; the model stays as it was. Evaluation samples and averages as in
    `FedAvg`.

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
        """One message, to the device whose turn it is."""
        if self.fraction_train == 0.0:
            return []
        order = self._order(grid)
        config["server-round"] = server_round
        record = RecordDict(
            {self.arrayrecord_key: arrays, self.configrecord_key: config}
        )
        return [
            Message(record, order[(server_round - 1) % len(order)], MessageType.TRAIN)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The device's arrays and metrics, untouched; None for both if its turn failed."""
        for reply in replies:
            if reply.has_error():
                logger.warning(
                    "Turn of node %d failed: %s",
                    reply.metadata.src_node_id,
                    reply.error.reason,
                )
                continue
            records = reply.content
            return next(iter(records.array_records.values()), None), next(
                iter(records.metric_records.values()), None
            )
        return None, None

    def _order(self, grid: Grid) -> list[int]:
        nodes = wait_for_devices(
            grid, 1 if self._complete_once is grid else max(self.min_available_nodes, 1)
        )
        self._complete_once = grid
        if isinstance(grid, SplitGrid):
            return turn_order(grid.devices.names(nodes))
        if self._devices is None or self._devices.grid is not grid:
            self._devices = Devices(grid)
        return turn_order(self._devices.names(nodes))


def wait_for_devices(grid: Grid, num_devices: int) -> list[int]:
    """The node ids, as soon as there are as many as `num_devices`."""
    logged = time.monotonic()
    while len(nodes := list(grid.get_node_ids())) < num_devices:
        if time.monotonic() - logged > _LOG_WAIT_S:
            logger.info("Waiting for devices: %d of %d", len(nodes), num_devices)
            logged = time.monotonic()
        time.sleep(_WAIT_S)
    return nodes
