"""The session ticket: what a device needs to open the session of one turn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from cryptography import x509
from flwr.app import Message

from flwr_splitfc.codec.model_arrays import EXACT_BITS, check_bits
from flwr_splitfc.exchange.protocol.address import split_address
from flwr_splitfc.exchange.protocol.records import fields_of, without_prefix
from flwr_splitfc.exchange.protocol.seeds import derive_seed
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError, TicketError
from flwr_splitfc.exchange.protocol.tls import Tls
from flwr_splitfc.settings import Scalar

PROTOCOLS = (3,)
"""Versions of the exchange that this package speaks, the best last."""

_STATE_BITS_KEY = "state-bits"
_KEEPS_OPTIMIZER_KEY = "keeps-optimizer"
_PIPELINE_DEPTH_KEY = "pipeline-depth"
_DECOUPLED_KEY = "decoupled"
_SEND_EVERY_KEY = "send-every"
_CUT_KEY = "cut"
_OUTPUT_CUT_KEY = "output-cut"
_CODEC_PREFIX = "codec."
_OUTPUT_CODEC_PREFIX = "output-codec."

_RECONNECT_TIMEOUT_KEY = "reconnect-timeout-s"
_RECONNECT_TIMEOUT_S = 60.0
"""What a ticket means that names no other; part of the protocol."""

MOST_UNDER_WAY = 1024
"""Mini-batches: a device keeps the weights and the graph of each."""

Purpose = Literal["train", "evaluate"]

_Fields: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Ticket:
    """A one-time admission to the split endpoint.

    A Flower message carries it as fields in its `ConfigRecord` (`with_fields`).

    Parameters
    ----------
    address : str
        ``host:port`` of the endpoint as devices reach it; empty where frames travel in
        Flower's messages.
    token : str
        The session's id, a dot and the secret that admits to it; never logged or
        printed.
    purpose : "train" or "evaluate"
        What the session may do.
    device : str
        The device's name.
    server_round : int
    seed : int
        The run's seed. Every random choice of the turn is derived from (seed, device,
        server round).
    codec : mapping
        The settings of the cut codec, as `flwr_splitfc.codec.cut_codec` takes them.
    output_codec : mapping
        The settings of the codec of the server half's output, where the device has the
        last layers; otherwise empty.
    tls : "off", "pinned" or "verified"
        How the endpoint proves itself: not at all; by its own certificate, which is
        `authority`; by a certificate for the address's host.
    authority : str
        A certificate in PEM; if empty, "verified" goes by the authorities that come
        with gRPC, or those in the file that it is told of on the device.
    reconnect_timeout_s : float
        How many seconds the device tries to reconnect when the connection breaks.
    state_bits : int
        Bits per entry of the optimizer state that the device leaves; 32 for exact.
    keeps_optimizer : bool
        Whether that state is kept for another turn; otherwise the device sends none.
    pipeline_depth : int
        How many mini-batches may be under way at once; `MOST_UNDER_WAY` at most.
    decoupled : bool
        Whether the device half learns from a loss of its own, and no gradient comes
        down.
    send_every : int
        Of so many mini-batches one goes up, the first; in decoupled training.
    cut, output_cut : str
        The layers after which the server half begins and ends, where `split_at` made
        it; otherwise empty.
    protocol : int
        The version of the exchange that both sides speak.
    """

    address: str
    token: str = field(repr=False)
    purpose: Purpose
    device: str
    server_round: int
    seed: int
    codec: Mapping[str, Scalar]
    output_codec: Mapping[str, Scalar] = field(default_factory=dict)
    tls: Tls = "off"
    authority: str = ""
    reconnect_timeout_s: float = _RECONNECT_TIMEOUT_S
    state_bits: int = EXACT_BITS
    keeps_optimizer: bool = True
    pipeline_depth: int = 1
    decoupled: bool = False
    send_every: int = 1
    cut: str = ""
    output_cut: str = ""
    protocol: int = PROTOCOLS[-1]

    @property
    def session_id(self) -> str:
        """The session's id, which is no secret."""
        return self.token.partition(".")[0]

    def to_fields(self) -> dict[str, Any]:
        """Return the ticket as Flower carries it: fields without empty texts."""
        fields: dict[str, Any] = {
            "protocols": list(PROTOCOLS),
            "address": self.address,
            "token": self.token,
            "purpose": self.purpose,
            "device": self.device,
            "server-round": self.server_round,
            "seed": self.seed,
            "tls": self.tls,
            "authority": self.authority,
            _CUT_KEY: self.cut,
            _OUTPUT_CUT_KEY: self.output_cut,
        }
        if self.reconnect_timeout_s != _RECONNECT_TIMEOUT_S:
            # devices want a float, which whole seconds may not be
            fields[_RECONNECT_TIMEOUT_KEY] = float(self.reconnect_timeout_s)
        if self.state_bits != EXACT_BITS:
            fields[_STATE_BITS_KEY] = self.state_bits
        if not self.keeps_optimizer:
            fields[_KEEPS_OPTIMIZER_KEY] = False
        if self.pipeline_depth != 1:
            fields[_PIPELINE_DEPTH_KEY] = self.pipeline_depth
        if self.decoupled:
            fields[_DECOUPLED_KEY] = True
        if self.send_every != 1:
            fields[_SEND_EVERY_KEY] = self.send_every
        for key, value in self.codec.items():
            fields[_CODEC_PREFIX + key] = value
        for key, value in self.output_codec.items():
            fields[_OUTPUT_CODEC_PREFIX + key] = value
        # Flower cannot count the bytes of an empty text
        return {key: value for key, value in fields.items() if value != ""}

    @property
    def turn_seed(self) -> int:
        """The seed of (run seed, device, round), for what is random in the turn."""
        return derive_seed(self.seed, self.device, self.server_round)

    @property
    def is_for_messages(self) -> bool:
        """Whether frames travel in Flower's messages: there is no address then."""
        return not self.address

    @classmethod
    def from_message(cls, message: Message) -> "Ticket":
        """Return the ticket in `message`.

        Raises
        ------
        TicketError
            If there is none, or a field is missing or cannot be used.
        ProtocolError
            If it was made by a version that speaks another protocol.
        """
        if not has_ticket(message):
            raise TicketError(
                f"the {message.metadata.message_type!r} message carries no split "
                "ticket: is it sent by a split strategy such as "
                "flwr_splitfc.SplitLearning?"
            )
        record = fields_of(message.content)
        protocol = _best_common_protocol(record)
        tls = _one_of(record, "tls", get_args(Tls))
        return cls(
            address=_address(record),
            token=_token(record),
            purpose=_one_of(record, "purpose", get_args(Purpose)),
            device=_printable(record, "device"),
            server_round=_typed(record, "server-round", int),
            seed=_typed(record, "seed", int),
            codec=without_prefix(_CODEC_PREFIX, record),
            output_codec=without_prefix(_OUTPUT_CODEC_PREFIX, record),
            tls=tls,
            authority=_authority(record, tls),
            reconnect_timeout_s=_reconnect_timeout_s(record),
            state_bits=_bits(record),
            keeps_optimizer=_typed(record, _KEEPS_OPTIMIZER_KEY, bool, default=True),
            pipeline_depth=_pipeline_depth(record),
            decoupled=_typed(record, _DECOUPLED_KEY, bool, default=False),
            send_every=_count(record, _SEND_EVERY_KEY),
            cut=_printable(record, _CUT_KEY, default=""),
            output_cut=_printable(record, _OUTPUT_CUT_KEY, default=""),
            protocol=protocol,
        )


def has_ticket(message: Message) -> bool:
    """Whether `message` asks for split training.

    Without a ticket, a device trains the joined model locally.
    """
    return message.has_content() and "token" in fields_of(message.content)


def _printable(record: _Fields, key: str, default: str | None = None) -> str:
    text: str = _typed(record, key, str, default=default)
    # logs show it
    if not text.isprintable():
        raise TicketError(
            f"ticket field {key!r} is {text!r:.100}, wanted printable characters"
        )
    return text


def _address(record: _Fields) -> str:
    address = _printable(record, "address", default="")
    if address:
        try:
            split_address(address)
        except ValueError as error:
            raise TicketError(f"ticket field 'address': {error}") from error
    return address


def _token(record: _Fields) -> str:
    token: str = _typed(record, "token", str)
    # a stream's metadata take nothing else, and the secret is not for a log
    if not (token.isascii() and token.isprintable()):
        raise TicketError("ticket field 'token' is not printable ASCII")
    return token


def _authority(record: _Fields, tls: Tls) -> str:
    authority: str = _typed(record, "authority", str, default="")
    if authority or tls == "pinned":
        _check_certificates(authority)
    return authority


def _check_certificates(pem: str) -> None:
    try:
        x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise TicketError(
            f"ticket field 'authority' holds no PEM certificate: {error}"
        ) from error


def _bits(record: _Fields) -> int:
    bits: int = _typed(record, _STATE_BITS_KEY, int, default=EXACT_BITS)
    try:
        check_bits(bits)
    except ValueError as error:
        raise TicketError(f"ticket field {_STATE_BITS_KEY!r}: {error}") from error
    return bits


def _reconnect_timeout_s(record: _Fields) -> float:
    key = _RECONNECT_TIMEOUT_KEY
    timeout_s: float = _typed(record, key, float, default=_RECONNECT_TIMEOUT_S)
    # no time is after NaN: the device would never give up
    if not timeout_s >= 0:
        raise TicketError(f"ticket field {key!r} is {timeout_s}, wanted 0 or more")
    return timeout_s


def _best_common_protocol(record: _Fields) -> int:
    offered = record.get("protocols", [record.get("protocol")])
    common = []
    if isinstance(offered, list):
        common = [protocol for protocol in PROTOCOLS if protocol in offered]
    if not common:
        raise ProtocolError(
            f"the ticket speaks protocol {offered!r}, "
            f"this package {list(PROTOCOLS)}: "
            "install the same version of flwr-splitfc on server and devices"
        )
    return common[-1]


def _typed(record: _Fields, key: str, kind: type, default: Scalar | None = None) -> Any:
    value = record.get(key, default)
    if not isinstance(value, kind):
        raise TicketError(f"ticket field {key!r} is {value!r}, wanted {kind.__name__}")
    return value


def _count(record: _Fields, key: str) -> int:
    count: int = _typed(record, key, int, default=1)
    if count < 1:
        raise TicketError(f"ticket field {key!r} is {count}, wanted 1 or more")
    return count


def _pipeline_depth(record: _Fields) -> int:
    depth = _count(record, _PIPELINE_DEPTH_KEY)
    if depth > MOST_UNDER_WAY:
        raise TicketError(
            f"ticket field {_PIPELINE_DEPTH_KEY!r} is {depth}, "
            f"wanted {MOST_UNDER_WAY} at most"
        )
    return depth


def _one_of(record: _Fields, key: str, choices: tuple[str, ...]) -> Any:
    value = _typed(record, key, str)
    if value not in choices:
        raise TicketError(f"ticket field {key!r} is {value!r}, wanted one of {choices}")
    return value
