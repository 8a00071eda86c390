"""The session ticket: what a device needs to open the session of one turn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from flwr.app import ConfigRecord, Message

from flwr_splitfc.exchange.protocol.errors import ProtocolError, TicketError
from flwr_splitfc.exchange.protocol.tls import Tls
from flwr_splitfc.settings import Scalar

PROTOCOLS = (2,)
"""Versions of the exchange that this package speaks, the best last."""

TICKET_KEY = "split-ticket"
_CODEC_PREFIX = "codec."
_OUTPUT_CODEC_PREFIX = "output-codec."

Purpose = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Ticket:
    """A one-time admission to the split endpoint, carried by a Flower message as a `ConfigRecord`.

    Parameters
    ----------
    address : str
        ``host:port`` of the endpoint as devices reach it; none where frames travel in
        Flower's messages.
    token : str
        The session's id, a dot and the secret that admits to it; never logged or
        printed.
    purpose : "train" or "evaluate"
        What the session may do.
    device, server_round, seed
        Who, when, and the run's seed: what every random choice of the turn is derived
        from.
    codec : mapping
        The settings of the cut codec, as `flwr_splitfc.codec.cut_codec` takes them.
    output_codec : mapping
        The same of the codec of the server half's output, where the device has the last
        layers; otherwise empty.
    tls : "off", "pinned" or "verified"
        How the endpoint proves itself: not at all; by `authority` itself, its own
        certificate; by a certificate for the address's host.
    authority : str
        A certificate in PEM; if empty, "verified" goes by what the device's system
        trusts.
    reconnect_timeout_s : float
        Seconds to try for when the connection breaks.
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
    reconnect_timeout_s: float = 60.0
    protocol: int = PROTOCOLS[-1]

    def to_record(self) -> ConfigRecord:
        """The ticket as Flower carries it."""
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
            "reconnect-timeout-s": self.reconnect_timeout_s,
        }
        fields |= {_CODEC_PREFIX + key: value for key, value in self.codec.items()}
        fields |= {
            _OUTPUT_CODEC_PREFIX + key: value
            for key, value in self.output_codec.items()
        }
        return ConfigRecord(
            {key: value for key, value in fields.items() if value != ""}
        )  # Flower's size count stumbles

    @classmethod
    def from_message(cls, message: Message) -> "Ticket":
        """The ticket in `message`.

        Raises
        ------
        TicketError
            If there is none, or a field is missing or of the wrong type.
        ProtocolError
            If it was made by a version that speaks another protocol.
        """
        if not has_ticket(message):
            raise TicketError(
                f"the {message.metadata.message_type!r} message carries no split ticket: "
                "is it sent by a split strategy such as flwr_splitfc.SplitLearning?"
            )
        record = message.content.config_records[TICKET_KEY]
        offered = record.get("protocols", [record.get("protocol")])
        common = [
            protocol
            for protocol in PROTOCOLS
            if isinstance(offered, list) and protocol in offered
        ]
        if not common:
            raise ProtocolError(
                f"the ticket speaks protocol {offered!r}, this package {list(PROTOCOLS)}: "
                "install the same version of flwr-splitfc on server and devices"
            )

        def get(key: str, kind: type, default: Scalar | None = None) -> Any:
            value = record.get(key, default)
            if not isinstance(value, kind):
                raise TicketError(
                    f"ticket field {key!r} is {value!r}, wanted {kind.__name__}"
                )
            return value

        def settings(prefix: str) -> Any:
            return {
                key.removeprefix(prefix): value
                for key, value in record.items()
                if key.startswith(prefix)
            }

        def one_of(key: str, kind: Any) -> Any:
            value = get(key, str)
            if value not in get_args(kind):
                raise TicketError(
                    f"ticket field {key!r} is {value!r}, wanted one of {get_args(kind)}"
                )
            return value

        return cls(
            address=get("address", str, ""),
            token=get("token", str),
            purpose=one_of("purpose", Purpose),
            device=get("device", str),
            server_round=get("server-round", int),
            seed=get("seed", int),
            codec=settings(_CODEC_PREFIX),
            output_codec=settings(_OUTPUT_CODEC_PREFIX),
            tls=one_of("tls", Tls),
            authority=get("authority", str, ""),
            reconnect_timeout_s=get("reconnect-timeout-s", float),
            protocol=common[-1],
        )


def has_ticket(message: Message) -> bool:
    """Whether `message` asks for split training; without a ticket a device trains the joined model locally."""
    return message.has_content() and TICKET_KEY in message.content.config_records
