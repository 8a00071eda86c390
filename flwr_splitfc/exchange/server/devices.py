"""The names of devices: node ids are random, so every device says its name once."""

from collections.abc import Iterable, Mapping
from logging import getLogger
from threading import Lock
from typing import TypeAlias

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flwr_splitfc.exchange.protocol.device_query import (
    NAME_KEY,
    NODE_CONFIG_KEY,
    QUERY_TYPE,
)
from flwr_splitfc.settings import Scalar

_NodeConfig: TypeAlias = dict[str, Scalar]

_QUERY_TIMEOUT_S = 120.0
_MOST_CONFIG_KEYS = 64
_MOST_CONFIG_CHARACTERS = 1000  # of a key, and of a text
_MOST_REASON_CHARACTERS = 200

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
        self._configs: dict[int, _NodeConfig] = {}
        self._warned = False

    def names(self, node_ids: Iterable[int]) -> dict[int, str]:
        """Return the name of each node, and ask those that were not asked yet."""
        wanted = list(node_ids)
        with self._lock:
            unknown = [node_id for node_id in wanted if node_id not in self._names]
            if unknown:
                self._ask(unknown)
            # a node that did not answer in time is asked again the next time
            return {
                node_id: self._names.get(node_id, str(node_id)) for node_id in wanted
            }

    def node_config(self, node_id: int) -> Mapping[str, Scalar]:
        """Return what a node told of its config, together with its name.

        Nothing in it is to be trusted.
        """
        return self._configs.get(node_id, {})

    def _ask(self, node_ids: list[int]) -> None:
        queries = [Message(RecordDict(), node_id, QUERY_TYPE) for node_id in node_ids]
        for reply in self.grid.send_and_receive(queries, timeout=_QUERY_TIMEOUT_S):
            if reply.has_error():
                self._note_error(reply)
            else:
                self._note_answer(reply)

    def _note_answer(self, reply: Message) -> None:
        node_id = reply.metadata.src_node_id
        records = reply.content.config_records
        name_record = records.get(NAME_KEY, ConfigRecord())
        self._names[node_id] = str(name_record.get(NAME_KEY, node_id))
        config_record = records.get(NODE_CONFIG_KEY, ConfigRecord())
        self._configs[node_id] = _scalars(config_record)

    def _note_error(self, reply: Message) -> None:
        node_id = reply.metadata.src_node_id
        self._names[node_id] = str(node_id)
        # once: all nodes of an app answer alike
        if not self._warned:
            reason = (reply.error.reason or "").strip()
            logger.warning(
                "node %d does not say who it is: %s: devices go by node id; "
                "see flwr_splitfc.answer_device_query",
                node_id,
                reason[-_MOST_REASON_CHARACTERS:],
            )
            self._warned = True


def _scalars(config: Mapping[str, object]) -> _NodeConfig:
    """Return what a node config may hold, as far as it is few and short."""
    scalars: _NodeConfig = {}
    for key in list(config)[:_MOST_CONFIG_KEYS]:
        value = config[key]
        if isinstance(value, str):
            value = value[:_MOST_CONFIG_CHARACTERS]
        if isinstance(value, Scalar) and len(key) <= _MOST_CONFIG_CHARACTERS:
            scalars[key] = value
    return scalars


def turn_order(names: dict[int, str]) -> list[int]:
    """Return one node for each device name, in the order of `name_order`.

    Of two nodes with one name it is the one named last, as of a device that was started
    again.

    >>> turn_order({901: "10", 17: "9", 55: "kitchen"})
    [17, 901, 55]
    """
    nodes = {name: node_id for node_id, name in names.items()}
    in_order = sorted(nodes, key=name_order)
    return [nodes[name] for name in in_order]


def name_order(name: str) -> tuple[bool, int, str]:
    """Return the sort key of a device name: numbers come first, as numbers."""
    if name.isdecimal():
        return False, int(name), name
    return True, 0, name
