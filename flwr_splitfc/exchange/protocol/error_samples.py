"""The steps in which the error at the cut is measured.

To measure it, the sender decodes its own payload. That costs as much as the receiver's
decoding, so it is done in a sample of the steps.
"""

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
