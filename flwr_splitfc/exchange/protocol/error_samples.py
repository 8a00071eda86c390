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

    One in ten does, the first of a run among them. Which of the ten is drawn, so that
    each device is measured also where devices take turns of a single step.

    Parameters
    ----------
    server_round, step : int
        Both count from 1.

    Examples
    --------
    >>> [step for step in range(1, 51) if is_measured(1, step)]
    [1, 20, 27, 36, 43]
    """
    ten, place = divmod(server_round + step - 2, _ONE_IN)
    drawn = derive_seed("error", ten) % _ONE_IN if ten else 0
    return place == drawn
