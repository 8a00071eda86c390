"""Errors between a device and the server half, by name.

Each class that the server can raise has a `reason`, the number under which it crosses
the wire; the device raises the same class again.
"""

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.told_text import one_line

MOST_DETAIL_CHARACTERS = 1000
"""Of a refusal; clients take 8 KiB of metadata."""


class SplitError(RuntimeError):
    """The exchange failed; every other error here is one of these."""

    reason: int = pb.UNSPECIFIED


class ProtocolError(SplitError):
    """The peer speaks another protocol version, or its frames are out of order."""

    reason = pb.PROTOCOL


class TicketError(SplitError):
    """The message carries no split ticket, or one that cannot be read."""


class TokenRefused(SplitError):
    """The server does not know the token, or another session used it before."""

    reason = pb.TOKEN


class TicketExpired(SplitError):
    """The round that the ticket was made for is over."""

    reason = pb.EXPIRED


class FeaturesRefused(SplitError):
    """Features that are malformed, not finite, or not of the agreed shape."""

    reason = pb.FEATURES


class LabelsRefused(SplitError):
    """Labels that are malformed, too few, too many, or out of range."""

    reason = pb.LABELS


class GradientRefused(SplitError):
    """A gradient of the server half's output that cannot be used.

    It is malformed, not finite, or not of the output's shape.
    """

    reason = pb.GRADIENT


class StateRefused(SplitError):
    """Optimizer state that the next device could not start from."""

    reason = pb.STATE


class StepRefused(SplitError):
    """The server half could not apply the step.

    For example, the loss or the half's output was not finite.
    """

    reason = pb.STEP


class LimitExceeded(SplitError):
    """The session met a limit of the server (`Limits`)."""

    reason = pb.LIMIT


class SessionCancelled(SplitError):
    """The server ended the session.

    Its round was over, or it was silent or disconnected for too long.
    """

    reason = pb.CANCELLED


class EndpointUnreachable(SplitError):
    """No split endpoint answers at the ticket's address, or the connection broke."""


_BY_REASON: dict[int, type[SplitError]] = {
    cls.reason: cls
    for cls in (
        ProtocolError,
        TokenRefused,
        TicketExpired,
        FeaturesRefused,
        LabelsRefused,
        GradientRefused,
        StateRefused,
        StepRefused,
        LimitExceeded,
        SessionCancelled,
    )
}


def error_from(refused: pb.Refused) -> SplitError:
    """Return the exception for a `Refused` frame.

    An unknown reason, of a later version, gives a plain `SplitError`.
    """
    error = _BY_REASON.get(refused.reason, SplitError)
    return error(one_line(refused.detail, MOST_DETAIL_CHARACTERS))
