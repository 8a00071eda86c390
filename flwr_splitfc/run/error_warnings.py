"""Warnings of a cut at which so much is lost that little can be learned."""

from dataclasses import dataclass
from logging import getLogger

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.run.columns import percent
from flwr_splitfc.run.rounds import Round

# From measurements: runs with larger errors learned little or nothing.
_MOST_FEATURE_ERROR = 0.5

# Dropout's error is unbiased, and no bound separates: the digits learn with 32, the
# quickstart learns next to nothing with 17. So the warning only says "perhaps".
_MOST_RESCALED_FEATURE_ERROR = 15.0
_MOST_GRADIENT_ERROR = 0.7

_PERHAPS = "Perhaps little can be learned"

# In the first rounds errors can be far larger than later, in runs that learn well.
_ROUNDS = 10

logger = getLogger("flwr")


@dataclass
class _Watch:
    """The largest error with which a run learns, and for how long it was larger.

    Parameters
    ----------
    key : str
        The attribute of a round that is watched.
    most : float
    what : str
        What has the error, and what it is relative to.
    advice : str
        What to change.
    verdict : str
    rounds_above : int
        Measured rounds above `most`, one after another.
    warned : bool
    """

    key: str
    most: float
    what: str
    advice: str
    verdict: str = "Little can be learned"
    rounds_above: int = 0
    warned: bool = False

    def check(self, done: Round) -> None:
        """Log the warning if this round makes it due, once."""
        error: float | None = getattr(done, self.key)
        if error is None or self.warned:
            return
        self.rounds_above = self.rounds_above + 1 if error > self.most else 0
        if self.rounds_above == _ROUNDS:
            self.warned = True
            self._warn(done.round, error)

    def _warn(self, server_round: int, error: float) -> None:
        logger.warning(
            "%s: for %d rounds the squared error of %s "
            "has been above %s%% (round %d: %s%%). %s",
            self.verdict,
            _ROUNDS,
            self.what,
            percent(self.most),
            server_round,
            percent(error),
            self.advice,
        )


class ErrorWarnings:
    """Warns of features, and of gradients, that arrive too coarse to learn from.

    Parameters
    ----------
    codec : CutCodec
        Of the cut.
    output_codec : CutCodec or None
        Of the second cut, where devices have the last layers.
    """

    def __init__(self, codec: CutCodec, output_codec: CutCodec | None) -> None:
        up = _Watch(
            "feature_error",
            _MOST_FEATURE_ERROR,
            "the features, relative to how they vary,",
            "Raise uplink_bits or quality.",
        )
        down = _Watch(
            "gradient_error",
            _MOST_GRADIENT_ERROR,
            "the gradients, relative to their size,",
            "Raise downlink_bits or quality.",
        )
        if output_codec is not None:
            _watch_output_too(up, down)
        if codec.rescales:
            _allow_rescaling(up)
        self._watches = [up, down]

    def check(self, done: Round) -> None:
        """Log a warning where an error stays too large."""
        for watch in self._watches:
            watch.check(done)


def _watch_output_too(up: _Watch, down: _Watch) -> None:
    """Let the watches speak of the output and its gradients, too.

    The error of a direction is the larger of two, and does not tell which. Some runs
    learn in time with 80 % of the output's gradients, by Adam, which scales them.
    """
    up.what = (
        "the features, relative to how they vary, "
        "or of the output's gradients, relative to their size,"
    )
    down.what = (
        "the output, relative to how it varies, "
        "or of the gradients, relative to their size,"
    )
    up.advice = "Raise uplink_bits or quality of codec or output_codec."
    down.advice = "Raise downlink_bits or quality of codec or output_codec."
    for watch in (up, down):
        watch.verdict = _PERHAPS


def _allow_rescaling(watch: _Watch) -> None:
    """Raise the bound where dropout scales what goes this way."""
    watch.most = _MOST_RESCALED_FEATURE_ERROR
    watch.advice = "Lower reduction, or leave it and the budgets out."
    watch.verdict = _PERHAPS
