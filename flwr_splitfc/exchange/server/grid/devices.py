"""The names of devices: node ids are random, so every device says its name once."""

from collections.abc import Iterable, Mapping
from logging import getLogger
from threading import Lock
from typing import TypeAlias, TypeGuard

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flwr_splitfc.exchange.protocol.device_query import (
    NAME_KEY,
    NODE_CONFIG_KEY,
    QUERY_TYPE,
)
from flwr_splitfc.exchange.protocol.model_record import takes_coded_arrays
from flwr_splitfc.exchange.server.accounts.name_order import name_order
from flwr_splitfc.exchange.server.grid.flower_messages import failure_of
from flwr_splitfc.exchange.server.grid.pushed_messages import replies_to
from flwr_splitfc.settings import Scalar

_NodeConfig: TypeAlias = dict[str, Scalar]

_QUERY_TIMEOUT_S = 120.0
# in a simulation few processes answer for many devices
_QUERY_S_PER_DEVICE = 0.1
_MOST_CONFIG_KEYS = 64
_MOST_CONFIG_CHARACTERS = 1000  # of a key, and of a text
_MOST_NAME_CHARACTERS = 100

logger = getLogger("flwr")


class Devices:
    """The names and node configs of a grid's nodes, each asked for once.

    A name is the first node's that says it, and with it the device's turns and what is
    kept for the device. Another node that says it goes by its node id, as a node does
    whose app does not answer, or says what is no name. A node that is started again has
    another id, unless it authenticates itself to the SuperLink.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._lock = Lock()
        self._names: dict[int, str] = {}
        self._owners: dict[str, int] = {}
        self._configs: dict[int, _NodeConfig] = {}
        self._decoders: set[int] = set()
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

    def has_answered(self, node_id: int) -> bool:
        """Return whether a node said who it is, when it was asked."""
        return node_id in self._configs

    def takes_coded_arrays(self, node_id: int) -> bool:
        """Return whether a node said, with its name, that it decodes model arrays."""
        return node_id in self._decoders

    def _ask(self, node_ids: list[int]) -> None:
        for node_id in node_ids:
            # or another node could say it before
            self._owners.setdefault(str(node_id), node_id)
        queries = [Message(RecordDict(), node_id, QUERY_TYPE) for node_id in node_ids]
        timeout_s = _QUERY_TIMEOUT_S + _QUERY_S_PER_DEVICE * len(queries)
        answered = replies_to(queries, self.grid, timeout_s)
        # by what was asked, not by what a reply says of its origin
        for reply, query in sorted(answered, key=lambda pair: _node_asked(pair[1])):
            if reply.has_content():
                self._note_answer(_node_asked(query), reply)
            else:
                self._note_error(_node_asked(query), reply)

    def _note_answer(self, node_id: int, reply: Message) -> None:
        records = reply.content.config_records
        name_record = records.get(NAME_KEY, ConfigRecord())
        said = name_record.get(NAME_KEY, str(node_id))
        self._names[node_id] = self._name_for(node_id, said)
        config_record = records.get(NODE_CONFIG_KEY, ConfigRecord())
        self._configs[node_id] = _scalars(config_record)
        if takes_coded_arrays(reply.content):
            self._decoders.add(node_id)

    def _name_for(self, node_id: int, said: object) -> str:
        """Return the name that a node says, if it is one, and no other node's."""
        if not _is_name(said):
            logger.warning(
                "node %d goes by its id: its name is %.100r, "
                "wanted 1 to %d printable characters",
                node_id,
                said,
                _MOST_NAME_CHARACTERS,
            )
            return str(node_id)
        owner = self._owners.setdefault(said, node_id)
        if owner != node_id:
            logger.warning(
                "node %d goes by its id: its name is %r, as that of node %d, "
                "which said it first",
                node_id,
                said,
                owner,
            )
            return str(node_id)
        return said

    def _note_error(self, node_id: int, reply: Message) -> None:
        self._names[node_id] = str(node_id)
        # once: all nodes of an app answer alike
        if not self._warned:
            logger.warning(
                "node %d does not say who it is: %s: devices go by node id; "
                "see flwr_splitfc.answer_device_query",
                node_id,
                failure_of(reply),
            )
            self._warned = True


def _node_asked(query: Message) -> int:
    return query.metadata.dst_node_id


def _is_name(said: object) -> TypeGuard[str]:
    if not isinstance(said, str):
        return False
    return said.isprintable() and 0 < len(said) <= _MOST_NAME_CHARACTERS


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
    """Return the nodes in the order of their names, as `name_order` has it.

    >>> turn_order({901: "10", 17: "9", 55: "kitchen"})
    [17, 901, 55]
    """
    return sorted(names, key=lambda node_id: name_order(names[node_id]))
