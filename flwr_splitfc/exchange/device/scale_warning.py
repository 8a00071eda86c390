"""A warning of features that differ so much in scale that most of them are lost."""

from functools import cache
from logging import getLogger

from torch import Tensor

from flwr_splitfc.codec.quality import lost_columns

_MOST_LOST = 0.5
"""Of the columns. Where they are alike in scale, a sixth is lost at most."""

_SMALL_ERROR = 0.1
"""With a larger one all columns are coarse, and a run's own warnings are of that."""

logger = getLogger("flwr")


def warn_of_scales(exact: Tensor, seen: Tensor, error: float) -> None:
    """Warn, once, where the error of features is small and most columns are lost.

    Parameters
    ----------
    exact, seen : Tensor of shape (B, D)
        Before encoding and after decoding.
    error : float
        Theirs, by `feature_error`.
    """
    if error < _SMALL_ERROR and lost_columns(exact, seen) > _MOST_LOST:
        _warn()


# once in a process: of turns there are many
@cache
def _warn() -> None:
    logger.warning(
        "Perhaps little can be learned: more than half of the features' columns arrive "
        "as noise, since a few others are far larger, and the error at the cut does "
        "not show it. If the server half normalises what it gets, let the device half "
        "do it, before the cut"
    )
