"""Who a device is: node ids are random, so every device says its name once."""

from collections.abc import Iterable, Mapping
from itertools import islice
from logging import getLogger
from threading import Lock

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flwr_splitfc.exchange.protocol.device_query import (
    NAME_KEY,
    NODE_CONFIG_KEY,
    QUERY_TYPE,
)
from flwr_splitfc.settings import Scalar

_QUERY_TIMEOUT_S = 120.0
_MOST_CONFIG_KEYS = 64
_MOST_CONFIG_CHARACTERS = 1000  # of a key, and of a text

logger = getLogger("flwr")


class Devices:
    """The names and node configs of a grid's nodes, each asked for once.

    A node whose app does not answer goes by its node id, which changes when it is
    started again.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._lock = Lock()
        self._names: dict[int, str] = {}
        self._configs: dict[int, dict[str, Scalar]] = {}
        self._warned = False

    def names(self, node_ids: Iterable[int]) -> dict[int, str]:
        """The name of each node."""
        wanted = list(node_ids)
        with self._lock:
            if new := [node_id for node_id in wanted if node_id not in self._names]:
                self._ask(new)
            return {
                node_id: self._names.get(node_id, str(node_id)) for node_id in wanted
            }

    def node_config(self, node_id: int) -> Mapping[str, Scalar]:
        """What a node whose name is known told of its config; nothing in it is to be trusted."""
        return self._configs.get(node_id, {})

    def _ask(self, node_ids: list[int]) -> None:
        queries = [Message(RecordDict(), node_id, QUERY_TYPE) for node_id in node_ids]
        for reply in self.grid.send_and_receive(queries, timeout=_QUERY_TIMEOUT_S):
            node_id = reply.metadata.src_node_id
            if reply.has_error():
                self._warn(
                    f"node {node_id} does not say who it is: {(reply.error.reason or '').strip()[-200:]}"
                )
                self._names[node_id] = str(node_id)
            else:
                record = reply.content.config_records.get(NAME_KEY, ConfigRecord())
                self._names[node_id] = str(record.get(NAME_KEY, node_id))
                self._configs[node_id] = _scalars(
                    reply.content.config_records.get(NODE_CONFIG_KEY, {})
                )

    def _warn(self, what: str) -> None:
        if not self._warned:
            logger.warning(
                "%s: devices go by node id; see flwr_splitfc.answer_device_query", what
            )
            self._warned = True


def _scalars(config: Mapping[str, object]) -> dict[str, Scalar]:
    """What a node config may hold, as far as it is few and short."""
    return {
        key: value[:_MOST_CONFIG_CHARACTERS] if isinstance(value, str) else value
        for key, value in islice(config.items(), _MOST_CONFIG_KEYS)
        if isinstance(value, Scalar) and len(key) <= _MOST_CONFIG_CHARACTERS
    }


def turn_order(names: dict[int, str]) -> list[int]:
    """One node per device name, in the names' order, numbers as numbers; of two, the one named last.

    >>> turn_order({901: "10", 17: "9", 55: "kitchen"})
    [17, 901, 55]
    """
    nodes = {name: node_id for node_id, name in names.items()}
    return [nodes[name] for name in sorted(nodes, key=name_order)]


def name_order(name: str) -> tuple[bool, int, str]:
    """Sort key of device names: numbers first, as numbers."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name
