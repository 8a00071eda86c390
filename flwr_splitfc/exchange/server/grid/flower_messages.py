"""Reading Flower's messages: what they are for, and what they carry and report."""

from collections.abc import Iterator
from math import nan

from flwr.app import Error, Message, MetricRecord
from google.protobuf.message import DecodeError

from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.protocol.told_text import INDENT, indented, one_line
from flwr_splitfc.exchange.server.accounts.traffic import Traffic

_PURPOSES: dict[str, Purpose] = {"train": "train", "evaluate": "evaluate"}
_MOST_REASON_CHARACTERS = 500
_TAB = "\\t"  # as it is escaped
_MARGIN = " \t\\"  # with which an error's further lines begin
_OF_SIMULATION = "Exception ClientAppException occurred. Message: "
_END_OF_SIMULATION = "'>"
_UNKNOWN_ERROR = 0  # among Flower's error codes
_MOST_COUNT = 2**53  # whole numbers up to it are exact as floats
_MOST_LOSS = 1e30  # or sums over samples and rounds would not be finite

UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    DecodeError,
)
"""What Flower raises for a message whose bytes are none, whoever sent them."""


def purpose_of(message: Message) -> Purpose | None:
    """Return what a message asks of a device at the cut; None for queries."""
    # a message type may name an action, too: "train.action"
    category, _, _ = message.metadata.message_type.partition(".")
    return _PURPOSES.get(category)


def round_told_in(message: Message) -> int | None:
    """Return the server round that a message's config tells, if it does."""
    if message.has_content():
        for config in message.content.config_records.values():
            server_round = config.get("server-round")
            if isinstance(server_round, int):
                return server_round
    return None


def reported_steps(reply: Message) -> Traffic:
    """Return the samples and steps that a reply's metrics report.

    What is no count, such as half a step, is 0.
    """
    traffic = Traffic()
    for metrics in _metrics_of(reply):
        traffic.rows += _count(metrics.get("num-examples"))
        traffic.steps += _count(metrics.get("steps"))
    return traffic


def reported_loss(reply: Message) -> Traffic:
    """Return the training loss that a reply's metrics report, over its samples.

    It is NaN where they report one that is not finite.
    """
    traffic = Traffic()
    for metrics in _metrics_of(reply):
        if "train_loss" in metrics:
            rows = _count(metrics.get("num-examples"))
            traffic.loss_sum += _loss(metrics["train_loss"]) * rows
            traffic.loss_rows += rows
    return traffic


def error_reply(message: Message, why: str) -> Message:
    """Make the reply that tells a strategy why a message has no other."""
    return Message(Error(_UNKNOWN_ERROR, why), reply_to=message)


def readable_error(message: Message, error: Error) -> Message:
    """Make the error reply of a device whose reason may stand in a log."""
    reason = indented(error.reason or "", _MOST_REASON_CHARACTERS)
    return Message(Error(error.code, reason), reply_to=message)


def failure_of(reply: Message) -> str:
    """Return why a device failed; of a traceback, the error."""
    lines = (reply.error.reason or "").splitlines()
    told = [line.removeprefix(INDENT) for line in lines if line.strip()]
    if not told:
        return "no reason given"
    return one_line(_error_of(told), _MOST_REASON_CHARACTERS)


def _error_of(lines: list[str]) -> str:
    """Return the error with which a traceback ends."""
    start = _start_of_error(lines)
    first, *more = [line.removeprefix(_TAB).strip() for line in lines[start:]]
    if first.startswith(_OF_SIMULATION):
        return _error_in_simulation(first, more, lines[:start])
    return " ".join([first, *more])


def _start_of_error(lines: list[str]) -> int:
    """Return where an error begins: with the last line that has no margin."""
    # torch's longer errors go on in lines that begin with a tab
    starts = [index for index, line in enumerate(lines) if line[0] not in _MARGIN]
    return starts[-1] if starts else 0


def _error_in_simulation(first: str, more: list[str], traceback: list[str]) -> str:
    """Return the app's error, of which the simulation engine repeats the text alone."""
    text = first.removeprefix(_OF_SIMULATION).removesuffix(_END_OF_SIMULATION)
    # the traceback before it has the type, too
    typed = [line for line in traceback if line.endswith(f": {text}")]
    told = typed[0] if typed else text
    # the end stands in the last line
    return " ".join([told, *more]).removesuffix(_END_OF_SIMULATION)


def _metrics_of(reply: Message) -> Iterator[MetricRecord]:
    yield from reply.content.metric_records.values()


def _count(value: object) -> int:
    # a device may report a float, a list of numbers, or nothing
    if not isinstance(value, int | float) or not 0 <= value <= _MOST_COUNT:
        return 0
    return int(value) if value == int(value) else 0


def _loss(value: object) -> float:
    if isinstance(value, int | float) and abs(value) <= _MOST_LOSS:
        return float(value)
    return nan
