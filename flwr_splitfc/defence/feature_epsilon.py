"""The differential privacy of noisy features, by Opacus' RDP accountant.

The server gets ``f + N(0, (noise C)^2)`` of a sample whose features ``f`` are at most
``C`` long. Whatever the sample is replaced by, ``f`` moves by at most ``2 C``: so the
Gaussian mechanism's multiplier is ``noise / 2``. There is no amplification by sampling,
since the server sees which steps a sample is in.
"""

from typing import Any

from flwr_splitfc.extras import imported

_LEAST_NOISE, _MOST_NOISE = 1e-9, 1e9  # squares of far others leave float64
_MOST_RELEASES = 10**15
_LOW_ORDERS = [1 + number / 1000 for number in range(2, 100, 2)]


def feature_epsilon(noise: float, releases: int, delta: float = 1e-5) -> float:
    """Return the epsilon of a sample's features after some releases.

    It is local differential privacy of one sample: whoever has all its noisy features
    can tell it from any other sample only as well as (epsilon, delta) allows. It covers
    neither labels nor the device half, which training changes.

    Nor does it cover the features of other samples that a device half makes after it
    has trained on this one. A server that looks at them, too, has more: of the turn,
    each later release, of whichever sample, counts as one more of this sample's. That
    is not so where the device half does not train, or where its gradient is clipped for
    each sample and noised before each step (DP-SGD), whose epsilon then comes on top.
    Noise on the half at the turn's end, as by Flower's `LocalDpMod`, comes too late.

    It holds where a sample's features depend on that sample alone. With batch
    normalisation in a device half that trains they depend on the whole batch: then a
    sample is in the features of the others, too, and epsilon is more than this.

    Needs ``pip install "flwr-splitfc[privacy]"``.

    Parameters
    ----------
    noise : float
        The noise's standard deviation over the clipping norm, from 1e-9 to 1e9.
    releases : int
        How often a sample's features go up: an epoch is one, so is an evaluation.
        Against such a server, add the later releases of its turns, of any sample. A
        whole number, 1e15 at most.
    delta : float (default: 1e-5)

    Raises
    ------
    ValueError
        If a number is out of range.
    ModuleNotFoundError
        Without Opacus.

    Examples
    --------
    >>> round(feature_epsilon(noise=4.0, releases=1), 2)
    2.17
    """
    is_in_range = _LEAST_NOISE <= noise <= _MOST_NOISE
    is_count = 1 <= releases <= _MOST_RELEASES and releases % 1 == 0
    if not is_in_range or not is_count or not 0 < delta < 1:
        raise ValueError(
            f"noise is {noise}, releases {releases}, delta {delta}: wanted "
            f"{_LEAST_NOISE:g} to {_MOST_NOISE:g}, a whole number from 1 to "
            f"{_MOST_RELEASES:g}, and between 0 and 1"
        )
    accountant = imported("opacus.accountants", "privacy").RDPAccountant()
    # (multiplier, sampling rate, number of steps)
    accountant.history = [(noise / 2, 1.0, releases)]
    epsilon: float = accountant.get_epsilon(delta, alphas=_orders(accountant))
    # its bound falls below 0 where delta alone allows for all that is told
    return max(epsilon, 0.0)


def _orders(accountant: Any) -> list[float]:
    # little noise has its best order close to 1, where Opacus' own begin at 1.1
    return [*_LOW_ORDERS, *accountant.DEFAULT_ALPHAS]
