"""A warning of an accuracy that is a percentage."""

from logging import getLogger

from flwr_splitfc.run.rounds import Round

_MOST = 1.000001
"""A mean of shares may be a little above 1."""

logger = getLogger("flwr")


class AccuracyWarning:
    """Warns, once, of an accuracy above 1: lines, tables and figures show shares."""

    def __init__(self) -> None:
        self._warned = False

    def check(self, done: Round) -> None:
        """Look at the accuracies of a round."""
        for accuracy in (done.accuracy, done.device_accuracy):
            if not self._warned and accuracy is not None and accuracy > _MOST:
                self._warned = True
                logger.warning(
                    "The accuracy of round %d is %g, and is taken for a share, of "
                    "%.1f%%: accuracy and eval_acc are 0.9 for 90%%, as a target "
                    "accuracy is",
                    done.round,
                    accuracy,
                    100 * accuracy,
                )
