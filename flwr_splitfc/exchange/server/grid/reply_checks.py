"""Checks of devices' replies before a strategy gets them.

Flower's strategies take it that replies are alike and whole: one that is not raises an
error for the round, and numbers that are not finite end in the average. A reply that is
refused here becomes an error reply, which fails its device alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from flwr_splitfc.exchange.protocol.model_record import model_for
from flwr_splitfc.exchange.server.grid.flower_messages import (
    error_reply,
    purpose_of,
    readable_error,
)
from flwr_splitfc.exchange.server.half.step_checks import MOST_NORM

_MOST_HEADER_BYTES = 4096  # of an array, beside its entries
_MOST_WEIGHT = 2**53  # whole numbers up to it are exact as floats
_MOST_NUMBERS = 1000  # of one reply's metrics
_MOST_NAME_CHARACTERS = 100
_NO_LIST = -1  # of a metric; a list may be empty

logger = getLogger("flwr")


class ReplyRefused(ValueError):
    """A reply that a strategy cannot take."""


class Reply(NamedTuple):
    """A reply, and the strategy's message that asked for it."""

    message: Message
    asked: Message


class _Keys(NamedTuple):
    """The keys of a reply's `MetricRecord`, and of its `ArrayRecord` after training."""

    metrics: str
    arrays: frozenset[str]


class ReplyChecks:
    """What the reply of a device that trained or evaluated has to be.

    It has one `MetricRecord`. After training it has as many `ArrayRecord` as the
    message that asked for it. One alone has the names, shapes and dtypes of the half's
    arrays. Several, such as the half and SCAFFOLD's control variates, have the
    message's keys, and each is like the message's record under its key, or like the
    half where that has the half's names. Entries are finite and at most 1e18, but for
    those that were not from the start, as in a mask.

    The records' keys are made those of most replies. The metrics are those that two
    replies in three of the round have; further ones are left out. Those that the
    strategy computes with are never left out, and a reply in which one of them is
    missing or out of range is refused. Another that is not finite fails no device.

    Parameters
    ----------
    half : ArrayRecord, optional
        The arrays that devices train. By default arrays are not checked.
    weight : str (default: "")
        The metric by which the strategy weights replies; it is a number above 0. By
        default there is none.
    needed : mapping of str to float, optional
        Other metrics that the strategy computes with in training, and the most that
        each may be; the least is 0.
    """

    def __init__(
        self,
        half: ArrayRecord | None = None,
        weight: str = "",
        needed: Mapping[str, float] | None = None,
    ) -> None:
        self._half = half
        self._weight = weight
        self._needed = needed or {}

    def checked(self, replies: Sequence[Reply]) -> list[Message]:
        """Return the replies to one strategy's messages, with errors for wrong ones."""
        checked = [
            Reply(self._refused_or_same(reply), reply.asked) for reply in replies
        ]
        alike = _with_usual_metrics(_with_usual_keys(checked))
        return [reply.message for reply in alike]

    def _refused_or_same(self, reply: Reply) -> Message:
        if purpose_of(reply.asked) is None:
            return reply.message
        if reply.message.has_error():
            return readable_error(reply.asked, reply.message.error)
        try:
            _check_origin(reply)
            self._check_content(reply)
        except ReplyRefused as error:
            return error_reply(reply.asked, str(error))
        return reply.message

    def _check_content(self, reply: Reply) -> None:
        content = reply.message.content
        metrics = list(content.metric_records.values())
        _check_count("MetricRecords", len(metrics), 1)
        self._check_metrics(metrics[0])
        if purpose_of(reply.asked) != "train":
            return
        for name, most in self._needed.items():
            _check_needed(name, metrics[0], most)
        if self._half is not None:
            sent = reply.asked.content.array_records
            _check_count("ArrayRecords", len(content.array_records), len(sent))
            for key, arrays in content.array_records.items():
                _check_record(key, arrays, sent, self._half)

    def _check_metrics(self, metrics: MetricRecord) -> None:
        numbers = 0
        for name, value in metrics.items():
            _check_name(name)
            values = value if isinstance(value, list) else [value]
            numbers += len(values)
        if numbers > _MOST_NUMBERS:
            raise ReplyRefused(
                f"the metrics hold {numbers} numbers, at most {_MOST_NUMBERS} may be"
            )
        if self._weight:
            _check_weight(self._weight, metrics)


def _check_origin(reply: Reply) -> None:
    metadata = reply.message.metadata
    asked = reply.asked.metadata
    if metadata.src_node_id != asked.dst_node_id:
        raise ReplyRefused(f"the reply says that it is of node {metadata.src_node_id}")
    if metadata.message_type != asked.message_type:
        raise ReplyRefused(
            f"the reply has type {metadata.message_type!r:.100}, "
            f"wanted {asked.message_type!r}"
        )
    if not reply.message.has_content():
        raise ReplyRefused("the reply is empty")


def _check_count(what: str, count: int, wanted: int) -> None:
    if count != wanted:
        raise ReplyRefused(f"the reply has {count} {what}, wanted {wanted}")


def _check_name(name: str) -> None:
    if not name.isprintable() or len(name) > _MOST_NAME_CHARACTERS:
        raise ReplyRefused(
            f"a metric has the name {name!r:.100}, "
            f"wanted at most {_MOST_NAME_CHARACTERS} printable characters"
        )


def _check_needed(name: str, metrics: MetricRecord, most: float) -> None:
    if name not in metrics:
        raise ReplyRefused(
            f"the reply has no metric {name!r}, which the strategy computes with"
        )
    value = metrics[name]
    if isinstance(value, list) or not 0 <= value <= most:
        raise ReplyRefused(
            f"metric {name!r} is {value!r:.100}, "
            f"wanted at least 0 and at most {most:g}: the strategy computes with it"
        )


def _check_weight(name: str, metrics: MetricRecord) -> None:
    if name not in metrics:
        raise ReplyRefused(f"the reply has no metric {name!r}")
    value = metrics[name]
    if value == 0:
        raise ReplyRefused(f"{name} is 0: the device went through no batch")
    if isinstance(value, list) or not 0 < value <= _MOST_WEIGHT:
        raise ReplyRefused(
            f"metric {name!r} is {value!r:.100}, "
            f"wanted more than 0 and at most {_MOST_WEIGHT}"
        )


def _check_record(
    key: str, arrays: ArrayRecord, sent: Mapping[str, ArrayRecord], half: ArrayRecord
) -> None:
    wanted = model_for(key, sent, None)
    if wanted is None:
        raise ReplyRefused(
            f"the reply has an ArrayRecord {key!r:.100}, "
            f"wanted those of the message, {sorted(sent)!r:.300}"
        )
    # averages may have made other types of the half that was sent
    is_half = wanted.keys() == half.keys() and _types(arrays) == _types(half)
    if len(sent) == 1 or is_half:
        _check_arrays(arrays, half, "the device half")
    else:
        _check_arrays(arrays, wanted, f"the message's {key!r:.100}")


def _types(arrays: ArrayRecord) -> dict[str, str]:
    return {name: array.dtype for name, array in arrays.items()}


def _check_arrays(arrays: ArrayRecord, wanted: ArrayRecord, what: str) -> None:
    for name in wanted:
        if name not in arrays:
            raise ReplyRefused(f"the reply comes without {name!r} of {what}")
    for name, array in arrays.items():
        if name not in wanted:
            raise ReplyRefused(f"{name!r:.100} is no array of {what}")
        _check_array(name, array, wanted[name])


def _check_array(name: str, array: Array, wanted: Array) -> None:
    most_bytes = len(wanted.data) + _MOST_HEADER_BYTES
    if len(array.data) > most_bytes:
        raise ReplyRefused(
            f"array {name!r} has {len(array.data)} bytes, at most {most_bytes} may be"
        )
    values = _values_of(name, array)
    shape, dtype = values.shape, str(values.dtype)
    if (shape, dtype) != (wanted.shape, wanted.dtype):
        raise ReplyRefused(
            f"array {name!r} is {dtype} of shape {shape}, "
            f"wanted {wanted.dtype} of shape {wanted.shape}"
        )
    _check_entries(name, values, _values_of(name, wanted))


def _check_entries(name: str, values: np.ndarray, wanted: np.ndarray) -> None:
    # a mask of minus infinities, or of the least numbers, is part of some models
    if not np.isfinite(values[np.isfinite(wanted)]).all():
        raise ReplyRefused(f"array {name!r} is not finite")
    if np.issubdtype(values.dtype, np.inexact):
        beyond = _is_beyond(values) & ~_is_beyond(wanted)
        if beyond.any():
            raise ReplyRefused(
                f"array {name!r} has an entry of {values[beyond][0]:g}, "
                f"beyond {MOST_NORM:g}"
            )


def _is_beyond(values: np.ndarray) -> np.ndarray:
    # a Python float would become a float16 beside one, and infinite
    is_within: np.ndarray = np.abs(values) <= np.float64(MOST_NORM)
    return ~is_within


def _values_of(name: str, array: Array) -> np.ndarray:
    try:
        values = array.numpy()
    # NumPy raises a dozen kinds for bytes that are no array
    except Exception as error:
        raise ReplyRefused(f"array {name!r} cannot be read: {error!r:.200}") from error
    # of an archive it makes something else
    if not isinstance(values, np.ndarray):
        raise ReplyRefused(f"array {name!r} cannot be read: it is an archive")
    return values


def _is_good(reply: Reply) -> bool:
    return reply.message.has_content() and purpose_of(reply.asked) is not None


def _with_usual_keys(replies: Sequence[Reply]) -> list[Reply]:
    """Give records the keys that those of most good replies have.

    A device chooses its keys, and its name, by which replies are in order: of keys as
    frequent, those of the message that asked count.
    """
    good = [reply for reply in replies if _is_good(reply)]
    counts = Counter(_keys(reply.message) for reply in good)
    if not counts:
        return list(replies)
    asked = _Keys("metrics", _array_keys(good[0].asked))
    usual = max(counts, key=lambda keys: (counts[keys], keys == asked))
    return [
        reply._replace(message=_renamed(reply, usual)) if _is_good(reply) else reply
        for reply in replies
    ]


def _keys(message: Message) -> _Keys:
    (metrics,) = message.content.metric_records
    return _Keys(metrics, _array_keys(message))


def _array_keys(message: Message) -> frozenset[str]:
    # of an evaluation no arrays are asked
    trains = purpose_of(message) == "train"
    return frozenset(message.content.array_records if trains else ())


def _renamed(reply: Reply, usual: _Keys) -> Message:
    """Return a good reply with the usual keys; an error reply where it cannot be."""
    message = reply.message
    keys = _keys(message)
    if keys == usual:
        return message
    new_keys = {keys.metrics: usual.metrics}
    if len(keys.arrays) == len(usual.arrays) == 1:
        new_keys |= zip(keys.arrays, usual.arrays, strict=True)
    elif keys.arrays != usual.arrays:
        return error_reply(
            reply.asked,
            "ArrayRecords of the reply are unlike those of most devices: "
            f"{sorted(keys.arrays)!r:.300}",
        )
    content = dict(message.content)
    renamed = {new: content.pop(old) for old, new in new_keys.items()}
    message.content = RecordDict({**content, **renamed})
    return message


def _with_usual_metrics(replies: Sequence[Reply]) -> list[Reply]:
    """Leave out metrics that are not usual, and refuse replies without those that are.

    A metric is usual if two good replies in three have it, with as many numbers. So of
    five devices or two, none decides alone what the others have to report.
    """
    good = [reply for reply in replies if _is_good(reply)]
    counts = Counter(metric for reply in good for metric in _metrics(reply.message))
    usual = {metric for metric, count in counts.items() if 3 * count >= 2 * len(good)}
    return [
        reply._replace(message=_as_usual(reply, usual)) if _is_good(reply) else reply
        for reply in replies
    ]


def _metrics(message: Message) -> set[tuple[str, int]]:
    """Return the names of metrics, each with how many numbers it has."""
    (metrics,) = message.content.metric_records.values()
    return {
        (name, len(value) if isinstance(value, list) else _NO_LIST)
        for name, value in metrics.items()
    }


def _as_usual(reply: Reply, usual: set[tuple[str, int]]) -> Message:
    message = reply.message
    metrics = _metrics(message)
    if not metrics >= usual:
        return error_reply(
            reply.asked,
            "metrics of the reply are unlike those of most devices: "
            f"{sorted(metrics)!r:.300}",
        )
    further = sorted(name for name, _ in metrics - usual)
    if further:
        _leave_out(message, further)
        logger.warning(
            "The reply of node %d has metrics that too few other devices report. "
            "They are left out: %s",
            reply.asked.metadata.dst_node_id,
            f"{further!r:.300}",
        )
    return message


def _leave_out(message: Message, names: Sequence[str]) -> None:
    # a copy: a device in this process may hold the records
    content = RecordDict(dict(message.content))
    for key, metrics in content.metric_records.items():
        kept = {name: value for name, value in metrics.items() if name not in names}
        content[key] = MetricRecord(kept)
    message.content = content
