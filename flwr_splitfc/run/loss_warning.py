"""A warning of a loss that does not fall."""

from collections.abc import Sequence
from logging import getLogger
from statistics import fmean

from flwr_splitfc.run.columns import known
from flwr_splitfc.run.rounds import Round

# Of 58 runs of 80 to 600 rounds that learned (digits, MNIST, CIFAR-10, Omniglot and
# text; a dozen codecs; most with devices in turn that have two classes each) the rule
# warns of none. With 30 rounds instead of 40 it would warn of one that learned later.
_ROUNDS = 40
_LEAST_FALL = 0.01

logger = getLogger("flwr")


class LossWarning:
    """Warns, once, of a loss that many rounds have not lowered."""

    def __init__(self) -> None:
        self._warned = False

    def check(self, rounds: Sequence[Round]) -> None:
        """Compare the last rounds with the first."""
        if self._warned:
            return
        losses = known(done.loss for done in rounds)
        if len(losses) < 2 * _ROUNDS:
            return
        first = fmean(losses[:_ROUNDS])
        last = fmean(losses[-_ROUNDS:])
        if last > (1 - _LEAST_FALL) * first:
            self._warned = True
            logger.warning(
                "Perhaps nothing is learned: the loss of the last %d rounds is %.4f on "
                "average, that of the first %d was %.4f. Try another learning rate, or "
                "strategy split-learning, which loses nothing at the cut",
                _ROUNDS,
                last,
                _ROUNDS,
                first,
            )
