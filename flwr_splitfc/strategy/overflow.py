"""Combining replies, and finding what went wrong in it.

Replies are finite one by one, but their sum, or the square of a change, need not be.
"""

from collections.abc import Iterator, Mapping, Sequence
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.serverapp.strategy import Strategy

from flwr_splitfc.exchange.protocol.whole_numbers import with_whole_numbers
from flwr_splitfc.strategy.innermost import layers, name_of
from flwr_splitfc.strategy.resumable import remembered, way_back

logger = getLogger("flwr")


class NotCombined(ArithmeticError):
    """A strategy can make nothing of replies that are good one by one."""


def combined(
    devices: Strategy, server_round: int, replies: Sequence[Message], sent: ArrayRecord
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """Return what a strategy makes of replies, as `Strategy.aggregate_train`.

    Whole numbers stay such. It warns where that is no arrays, though there are some in
    replies.

    Parameters
    ----------
    devices : Strategy
    server_round : int
    replies : sequence of Message
        Those to the round's messages.
    sent : ArrayRecord
        The arrays in these.

    Raises
    ------
    NotCombined
        If it divides by zero on the way, says itself that it cannot, or makes what is
        not finite; the strategy remembers what it did before.
    """
    ways_back = [way_back(layer) for layer in layers(devices)]
    try:
        arrays, averages = _finite(devices, server_round, replies, sent)
    except NotCombined:
        for go_back in ways_back:
            go_back()
        raise
    if arrays is None:
        _warn_if_dropped(devices, server_round, replies)
        return None, averages
    # in place, since FedAvgM goes on from the record that it has returned
    arrays.update(with_whole_numbers(arrays, sent))
    return arrays, averages


def _finite(
    devices: Strategy, server_round: int, replies: Sequence[Message], sent: ArrayRecord
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """Return what a strategy makes of replies, if it is finite."""
    name = name_of(devices)
    try:
        # what overflows is found below
        with np.errstate(over="ignore", invalid="ignore"):
            arrays, averages = devices.aggregate_train(server_round, replies)
    except ArithmeticError as error:
        raise NotCombined(
            f"{name} cannot combine the devices' arrays: {error!r}"
            f"{_about_unchanged(replies, sent)}"
        ) from error
    except (AggregationError, InconsistentMessageReplies) as error:
        raise NotCombined(f"{name} combines none of the replies: {error}") from error
    found = None if arrays is None else overflowed(devices, sent, arrays)
    if found is not None:
        raise NotCombined(
            f"what {name} made of the devices' arrays is not finite: {found}"
        )
    return arrays, averages


def _about_unchanged(replies: Sequence[Message], sent: ArrayRecord) -> str:
    """Return how many halves did not change: clipping divides by a change's norm."""
    good = [reply.content for reply in replies if reply.has_content()]
    halves = [next(iter(each.array_records.values())) for each in good]
    unchanged = sum(half == sent for half in halves)
    if not unchanged:
        return ""
    return (
        f", and {unchanged} of {len(halves)} came back as they were sent: Flower's "
        "clipping divides by the norm of a change"
    )


def _warn_if_dropped(
    devices: Strategy, server_round: int, replies: Sequence[Message]
) -> None:
    trained = sum(reply.has_content() for reply in replies)
    if trained:
        logger.warning(
            "Round %d leaves the device halves as they were: %s combined none of the "
            "%d that came (devices that failed: %d). Flower's strategies for "
            "differential privacy combine none where any device fails",
            server_round,
            name_of(devices),
            trained,
            len(replies) - trained,
        )


def overflowed(
    devices: Strategy, before: ArrayRecord, after: ArrayRecord
) -> str | None:
    """Return what is not finite any more; None if all is as finite as before.

    Parameters
    ----------
    devices : Strategy
        What combined the halves; one of Flower's may remember arrays of their shapes.
    before, after : ArrayRecord
        The device half. Entries that were not finite before, as in a mask, may be
        anything.
    """
    for name, array in after.items():
        if name in before and _is_less_finite(before[name], array.numpy()):
            return f"array {name!r}"
    for layer in layers(devices):
        for attribute in remembered(layer):
            for name, values in _by_name(getattr(layer, attribute), before):
                if _is_less_finite(before[name], values):
                    return f"{attribute} of array {name!r}"
    return None


def _is_less_finite(before: Array, after: np.ndarray) -> bool:
    was_finite = np.isfinite(before.numpy())
    return not (np.isfinite(after) | ~was_finite).all()


def _by_name(arrays: Any, half: ArrayRecord) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays that a strategy remembers; none before its first round."""
    if isinstance(arrays, Mapping):
        yield from arrays.items()
    elif arrays is not None:
        # in the half's order
        yield from zip(half, arrays, strict=True)
