"""Warnings where devices reply and a half stays as it is, or is not asked."""

from collections.abc import Iterable
from logging import getLogger

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

# Of the norm. Measured on the digits in 36 runs of 40 rounds: float32, splitfc and
# splitfc-rd; iid and by classes; Adam at 1e-3, 3e-2 and 1e-1; two seeds. In the 17 that
# learned, no round changed less than 9e-3, so none is warned of. In the 19 in which all
# units died, the change ran down with Adam's momentum to exactly 0: all are warned of,
# in rounds 14 to 27.
_LEAST_CHANGE = 1e-6
_ROUNDS = 3

# statistics of batches, which go on whatever the gradient is
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

logger = getLogger("flwr")


class Standstill:
    """Warns, once each, of rounds that train or evaluate but one half, or none."""

    def __init__(self) -> None:
        self._rounds = 0
        self._warned = False
        self._warned_of_steps = False
        self._warned_of_predictions = False

    def check_steps(
        self, server_round: int, steps: int, replies: Iterable[Message]
    ) -> None:
        """Look at how many steps the server half made in a round with such replies."""
        replied = sum(reply.has_content() for reply in replies)
        if steps or not replied or self._warned_of_steps:
            return
        self._warned_of_steps = True
        logger.warning(
            "The server half was not trained in round %d, though devices replied (%d): "
            "their train function opened no session, or asked it for nothing but "
            "predict(). Use server.loss(features, labels)",
            server_round,
            replied,
        )

    def check_predictions(
        self, server_round: int, predictions: int, replies: Iterable[Message]
    ) -> None:
        """Look at how many predictions were made in an evaluation with such replies."""
        contents = [reply.content for reply in replies if reply.has_content()]
        evaluated = sum(_tells_metrics(content) for content in contents)
        if predictions or not evaluated or self._warned_of_predictions:
            return
        self._warned_of_predictions = True
        logger.warning(
            "The server half predicted nothing in the evaluation of round %d, though "
            "devices reported metrics (%d): these are of what comes out of the device "
            "half, and not of the whole model. Use "
            "server.predict(features) in the evaluate function",
            server_round,
            evaluated,
        )

    def check(
        self, server_round: int, sent: ArrayRecord, replies: Iterable[Message]
    ) -> None:
        """Look at a round in which devices sent features and got their gradient.

        Parameters
        ----------
        server_round : int
        sent : ArrayRecord
            The device half from which they started.
        replies : iterable of Message
            Theirs; one that has another half than before is enough.
        """
        if self._warned:
            return
        trained = [reply.content for reply in replies if reply.has_content()]
        halves = [_half(each, sent) for each in trained]
        moved = any(_moved(sent, half) for half in halves)
        self._rounds = 0 if moved or not halves else self._rounds + 1
        if self._rounds == _ROUNDS:
            self._warned = True
            logger.warning(
                "Devices learn nothing: for %d rounds (round %d is the last) training "
                "has left the device half as it was. The gradient has "
                "vanished, as where a high learning rate kills units: lower the "
                "learning rate. Or the devices' loop calls no backward() and "
                "optimizer.step()",
                _ROUNDS,
                server_round,
            )


def _tells_metrics(content: RecordDict) -> bool:
    """Whether a reply to an evaluation has more than how many samples there were."""
    return any(
        record.keys() - {"num-examples"} and record.get("num-examples", 1)
        for record in content.metric_records.values()
    )


def _half(content: RecordDict, sent: ArrayRecord) -> ArrayRecord:
    """Return the half in a reply, which may have control variates beside it."""
    records = list(content.array_records.values())
    alike = [record for record in records if record.keys() == sent.keys()]
    return (alike or records)[0]


def _moved(before: ArrayRecord, after: ArrayRecord) -> bool:
    return any(
        _change(before[name].numpy(), array.numpy()) > _LEAST_CHANGE
        for name, array in after.items()
        if name in before and not name.endswith(_BUFFERS)
    )


def _change(before: np.ndarray, after: np.ndarray) -> float:
    """Return the norm of the change over that of what was there; 0 for integers."""
    if not np.issubdtype(before.dtype, np.inexact):
        return 0.0
    # at least float64, and complex for complex arrays
    before = before.astype(np.promote_types(before.dtype, float))
    with np.errstate(invalid="ignore"):  # an infinite entry that stays, as of a mask
        difference = np.linalg.norm(after - before)
    norm = np.linalg.norm(before)
    if norm == 0:
        return float(difference)
    return float(difference / norm)
