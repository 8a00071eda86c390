"""Means of what devices find in evaluation, over the values that count.

A value that is not finite does not count: a device whose samples are all of one class
has no AUC, and one NaN would leave the run without a mean.
"""

from collections.abc import Mapping, Sequence
from logging import getLogger
from math import isfinite
from typing import Any

from flwr.app import Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Strategy

from flwr_splitfc.run.progress import ACCURACY_KEYS
from flwr_splitfc.strategy.innermost import innermost

logger = getLogger("flwr")

_FLOWERS_MEANS = FedAvg().evaluate_metrics_aggr_fn


def counted_means(
    averages: MetricRecord | None,
    devices: Strategy,
    server_round: int,
    replies: Sequence[Message],
) -> MetricRecord | None:
    """Return a strategy's averages, with means over the values that count.

    A value counts if it is finite. An accuracy has to be from 0 to 1, too, if that of
    two devices in three is: it may be a percentage. Means over values that all count,
    or none of which does, stay as they are. So do those of a function of the user's.

    Parameters
    ----------
    averages : MetricRecord, optional
        What `Strategy.aggregate_evaluate` returned.
    devices : Strategy
    server_round : int
        For the warnings, which name the nodes whose values do not count.
    replies : sequence of Message
    """
    inner = innermost(devices)
    if averages is None or not isinstance(inner, FedAvg):
        return averages
    if inner.evaluate_metrics_aggr_fn is not _FLOWERS_MEANS:
        return averages
    records = _records(replies)
    recounted = {
        name: _mean(name, server_round, records, inner.weighted_by_key)
        for name, average in averages.items()
        if not isinstance(average, list)
    }
    known = {name: mean for name, mean in recounted.items() if mean is not None}
    return MetricRecord({**averages, **known})


def _records(replies: Sequence[Message]) -> dict[int, Mapping[str, Any]]:
    """Return the metrics of good replies, by node."""
    good = [reply for reply in replies if reply.has_content()]
    return {
        reply.metadata.src_node_id: next(iter(reply.content.metric_records.values()))
        for reply in good
    }


def _mean(
    name: str, server_round: int, records: Mapping[int, Mapping[str, Any]], weight: str
) -> float | None:
    """Return the mean over the values that count; None if all do, or none."""
    values = {node: record[name] for node, record in records.items() if name in record}
    counted = _counted(name, values)
    if not counted or len(counted) == len(values):
        return None
    others = {node: value for node, value in values.items() if node not in counted}
    logger.warning(
        "The mean of %r in round %d leaves out what these nodes report: %s",
        name,
        server_round,
        f"{others!r:.300}",
    )
    weights = {node: records[node][weight] for node in counted}
    total = sum(weights.values())
    # shares first: a product may overflow
    parts = [value * (weights[node] / total) for node, value in counted.items()]
    mean: float = sum(parts)
    return mean


def _counted(name: str, values: Mapping[int, float]) -> dict[int, float]:
    finite = {node: value for node, value in values.items() if isfinite(value)}
    if name not in ACCURACY_KEYS:
        return finite
    shares = {node: value for node, value in finite.items() if 0 <= value <= 1}
    return shares if 3 * len(shares) >= 2 * len(finite) else finite
