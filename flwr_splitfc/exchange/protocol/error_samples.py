"""The steps in which the error at the cut is measured, and how.

To measure it, the sender decodes its own payload. That costs as much as the receiver's
decoding, so it is done in a sample of the steps.
"""

from flwr.app import Array
from torch import Tensor

from flwr_splitfc.codec import CutCodec, Link
from flwr_splitfc.codec.quality import gradient_error
from flwr_splitfc.exchange.protocol.seeds import derive_seed

MOST_ERROR = 1e6
"""What a larger error of a step counts as: one batch must not decide a run's mean."""

_ONE_IN = 10


def is_measured(server_round: int, step: int) -> bool:
    """Return whether a step of training measures its error.

    In a turn every tenth step does, and in ten rounds each step does once, so that one
    in ten is measured also where a turn has a single step. Which round it is in each
    ten is drawn: devices that take turns must not share their rounds out so that some
    are never measured. The first step of a run is.

    Parameters
    ----------
    server_round, step : int
        Both count from 1.

    Examples
    --------
    >>> [step for step in range(1, 31) if is_measured(1, step)]
    [1, 11, 21]
    >>> [server_round for server_round in range(1, 51) if is_measured(server_round, 1)]
    [1, 20, 27, 36, 43]
    """
    ten, place = divmod(server_round - 1, _ONE_IN)
    drawn = derive_seed("error", ten) % _ONE_IN if ten else 0
    return (place + step - 1 - drawn) % _ONE_IN == 0


def sent_and_seen(
    codec: CutCodec, features: Tensor, encoded: Array, link: Link
) -> tuple[Tensor, Tensor]:
    """Return the sent rows of features, as they were and as the receiver decodes them.

    Parameters
    ----------
    codec : CutCodec
    features : Tensor of shape (B, ...)
    encoded : Array
    link : Link
        The last two from `CutCodec.encode_features`.

    Returns
    -------
    tuple of Tensor of shape (b, D)
        On the features' device.
    """
    exact = features.flatten(1).float()
    decoded, _ = codec.decode_features(encoded, expect=(link.rows, link.width))
    return link.sent_rows(exact), link.sent_rows(decoded.to(exact.device))


def error_of_gradient(
    codec: CutCodec, gradient: Tensor, encoded: Array, link: Link
) -> float:
    """Return the error of a gradient as its receiver decodes it, where it was sent.

    Parameters
    ----------
    codec : CutCodec
    gradient : Tensor of shape (B, ...)
    encoded : Array
        From `CutCodec.encode_gradient`.
    link : Link
        From `CutCodec.decode_features`.
    """
    exact = link.restrict(gradient.flatten(1))
    decoded = codec.decode_gradient(encoded, link)
    return gradient_error(exact, link.restrict(decoded.to(exact.device)))
