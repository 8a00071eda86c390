"""The session ticket: what a device needs to open the session of one turn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import ConfigRecord, Message

from flwr_splitfc.exchange.errors import ProtocolError, TicketError

PROTOCOL = 1
TICKET_KEY = "split-ticket"
_CODEC_PREFIX = "codec."

Purpose = Literal["train", "evaluate"]
Scalar = bool | int | float | str


@dataclass(frozen=True)
class Ticket:
    """A one-time admission to the split endpoint, carried by a Flower message as a `ConfigRecord`.

    Parameters
    ----------
    address : str
        ``host:port`` of the endpoint as devices reach it.
    token : str
        The secret that the endpoint knows the session by; never logged or printed.
    purpose : "train" or "evaluate"
        What the session may do.
    device, server_round, seed
        Who, when, and the run's seed: what every random choice of the turn is derived from.
    codec : mapping
        The settings of the cut codec, as `flwr_splitfc.codec.cut_codec` takes them.
    """

    address: str
    token: str = field(repr=False)
    purpose: Purpose
    device: str
    server_round: int
    seed: int
    codec: Mapping[str, Scalar]

    def to_record(self) -> ConfigRecord:
        """The ticket as Flower carries it."""
        fields: dict[str, Scalar] = {
            "protocol": PROTOCOL,
            "address": self.address,
            "token": self.token,
            "purpose": self.purpose,
            "device": self.device,
            "server-round": self.server_round,
            "seed": self.seed,
        }
        return ConfigRecord({**fields, **{_CODEC_PREFIX + key: value for key, value in self.codec.items()}})

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
        if record.get("protocol") != PROTOCOL:
            raise ProtocolError(f"the ticket speaks protocol {record.get('protocol')!r}, this package {PROTOCOL}")

        def get(key: str, kind: type[int] | type[str]) -> int | str:
            value = record.get(key)
            if not isinstance(value, kind):
                raise TicketError(f"ticket field {key!r} is {value!r}, wanted {kind.__name__}")
            return value

        purpose = get("purpose", str)
        if purpose not in ("train", "evaluate"):
            raise TicketError(f"ticket field 'purpose' is {purpose!r}, wanted 'train' or 'evaluate'")
        codec = {k.removeprefix(_CODEC_PREFIX): v for k, v in record.items() if k.startswith(_CODEC_PREFIX)}
        return cls(
            address=str(get("address", str)),
            token=str(get("token", str)),
            purpose=purpose,  # type: ignore[arg-type]
            device=str(get("device", str)),
            server_round=int(get("server-round", int)),
            seed=int(get("seed", int)),
            codec=codec,  # type: ignore[arg-type]
        )


def has_ticket(message: Message) -> bool:
    """Whether `message` asks for split training; without a ticket a device trains the joined model locally."""
    return message.has_content() and TICKET_KEY in message.content.config_records
