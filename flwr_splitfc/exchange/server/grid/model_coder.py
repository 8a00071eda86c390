"""The server's end of coded models: it codes messages and decodes their replies."""

from collections.abc import Iterable
from logging import getLogger
from typing import NamedTuple

from flwr.app import ArrayRecord, Message, RecordDict

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.model_codec import ModelCodec
from flwr_splitfc.exchange.protocol.frame_bytes import parse_model
from flwr_splitfc.exchange.protocol.model_record import (
    pack_model,
    packed_model,
    unpack_model,
)
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError
from flwr_splitfc.exchange.protocol.whole_numbers import (
    whole_numbers,
    with_whole_numbers,
)
from flwr_splitfc.exchange.server.grid.devices import Devices
from flwr_splitfc.exchange.server.grid.flower_messages import error_reply, purpose_of
from flwr_splitfc.exchange.server.grid.still_arrays import small_arrays, still_arrays

_WITHOUT_MOD = (
    "Node %d gets and returns float32 models: its ClientApp has no "
    "flwr_splitfc.model_codec_mod among its mods"
)
_WITHOUT_QUERY = (
    "Node %d gets and returns float32 models: it did not answer the query by which a "
    "ClientApp says that it has flwr_splitfc.model_codec_mod; see "
    "flwr_splitfc.answer_device_query"
)
# what comes back under a key may be no model that was trained from the one there
_SEVERAL = (
    "The strategy's messages have several ArrayRecords, which travel as they are: "
    "model_bits are for messages with the model alone"
)

logger = getLogger("flwr")


class _Model(NamedTuple):
    """A model as it is sent.

    Parameters
    ----------
    weights : ArrayRecord
    exact : set of str
        Names of arrays that go as they are.
    coded : ArrayRecord
    """

    weights: ArrayRecord
    exact: set[str]
    coded: ArrayRecord


class ModelCoder:
    """Codes the models in a strategy's messages, and decodes the changes in replies.

    The strategy has exact arrays before and after. What a message had is kept here
    until its reply is decoded, and nothing beyond that.

    Parameters
    ----------
    codec : ModelCodec
    devices : Devices, optional
        Knows which of them have `model_codec_mod`; others get models as they are. By
        default all have it.
    first : ArrayRecord, optional
        The model that training begins with; default: the first that is sent.
    """

    def __init__(
        self,
        codec: ModelCodec,
        devices: Devices | None = None,
        first: ArrayRecord | None = None,
    ) -> None:
        self.codec = codec
        self.devices = devices
        self._first = None if first is None else small_arrays(first)
        # with the message, so that its id stays its own
        self._sent: dict[int, tuple[Message, _Model]] = {}
        # the strategy's, and as it was sent
        self._last: tuple[ArrayRecord, _Model] | None = None
        self._whole: ArrayRecord | None = None
        self._warned: set[str] = set()

    def encode(self, message: Message, server_round: int) -> None:
        """Code the model in a message to train or to evaluate."""
        records = message.content.array_records
        if self.codec.is_exact or purpose_of(message) is None or not records:
            return
        if not self._is_understood(message.metadata.dst_node_id):
            return
        if len(records) > 1:
            self._warn_once(_SEVERAL)
            return
        [(key, record)] = records.items()
        model = self._coded(record, server_round)
        # a new content: strategies share one among their messages
        message.content = RecordDict({**message.content, key: model.coded})
        self._sent[id(message)] = message, model

    def decode(self, reply: Message, asked: Message) -> Message:
        """Return a reply with whole models; an error where they cannot be decoded."""
        _, model = self._sent.get(id(asked), (asked, None))
        if model is None or not reply.has_content():
            return reply
        try:
            decoded = {
                key: self._trained(record, model)
                for key, record in reply.content.array_records.items()
            }
        except (PayloadError, ProtocolError) as error:
            return error_reply(asked, f"the model in the reply: {error}")
        except Exception as error:
            # a fault of this package, which must not cost the others the run
            logger.error("The server failed in decoding a reply", exc_info=error)
            return error_reply(asked, f"the model in the reply: {error!r:.200}")
        reply.content = RecordDict({**reply.content, **decoded})
        return reply

    def _trained(self, record: ArrayRecord, model: _Model) -> ArrayRecord:
        packed = packed_model(record)
        if packed is None:
            return record
        coded = unpack_model(parse_model(packed))
        return self.codec.decode_changes(coded, model.weights, model.exact)

    def forget(self, messages: Iterable[Message]) -> None:
        """Drop what is kept for messages whose replies are in, or will not come."""
        for message in messages:
            self._sent.pop(id(message), None)
        # a strategy may change the last model in place: the next is coded anew
        self._last = None

    def _coded(self, record: ArrayRecord, server_round: int) -> _Model:
        """Return a model as it is sent, coded once for all messages that share it.

        Whole numbers are sent as such, though the strategy has averaged them. From the
        second round on, small arrays that training has left as they were go exactly.
        """
        if self._last is not None and record is self._last[0]:
            return self._last[1]
        weights = with_whole_numbers(record, self._whole or record)
        self._whole = whole_numbers(weights)
        if self._first is None:
            self._first = small_arrays(weights)
        exact = still_arrays(weights, self._first) if server_round > 1 else set()
        coded = self.codec.encode_weights(weights, exact)
        model = _Model(weights, exact, pack_model(coded, self.codec.changes))
        self._last = record, model
        return model

    def _is_understood(self, node_id: int) -> bool:
        if self.devices is None or self.devices.takes_coded_arrays(node_id):
            return True
        answered = self.devices.has_answered(node_id)
        self._warn_once(_WITHOUT_MOD if answered else _WITHOUT_QUERY, node_id)
        return False

    def _warn_once(self, warning: str, *about: object) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            logger.warning(warning, *about)
