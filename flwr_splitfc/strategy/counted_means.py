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
from flwr_splitfc.strategy.innermost import innermost, layers

logger = getLogger("flwr")

_FLOWERS_MEANS = FedAvg().evaluate_metrics_aggr_fn

_MOST_ACCURACY = 100.000001
"""Some tell percentages, and a sum of shares may be a little above 1."""


def counted_means(
    averages: MetricRecord | None,
    devices: Strategy,
    server_round: int,
    replies: Sequence[Message],
) -> MetricRecord | None:
    """Return a strategy's averages, with means over the values that count.

    A value counts if it is finite, and an accuracy if it is from 0 to 100, too. Means
    over values that all count, or none of which does, stay as they are. So does what
    the user's own function or strategy makes.

    Parameters
    ----------
    averages : MetricRecord, optional
        What `Strategy.aggregate_evaluate` returned.
    devices : Strategy
    server_round : int
        For the warnings, which name the nodes whose values do not count.
    replies : sequence of Message
    """
    inner = _averaging(devices)
    if averages is None or inner is None:
        return averages
    records = _records(replies)
    recounted = {
        name: _mean(name, server_round, records, inner.weighted_by_key)
        for name, average in averages.items()
        if not isinstance(average, list)
    }
    known = {name: mean for name, mean in recounted.items() if mean is not None}
    return MetricRecord({**averages, **known})


def _averaging(devices: Strategy) -> FedAvg | None:
    """Return the innermost strategy, if Flower's own means are what comes of it."""
    own = [type(layer).aggregate_evaluate for layer in layers(devices)]
    if not all(method.__module__.startswith("flwr.") for method in own):
        return None
    inner = innermost(devices)
    if not isinstance(inner, FedAvg):
        return None
    is_usual = inner.evaluate_metrics_aggr_fn is _FLOWERS_MEANS
    return inner if is_usual else None


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
    if not total > 0:
        return None
    # shares first: a product may overflow
    parts = [value * (weights[node] / total) for node, value in counted.items()]
    mean: float = sum(parts)
    return mean


def _counted(name: str, values: Mapping[int, Any]) -> dict[int, float]:
    finite = {node: value for node, value in values.items() if isfinite(value)}
    if name not in ACCURACY_KEYS:
        return finite
    return {
        node: value for node, value in finite.items() if 0 <= value <= _MOST_ACCURACY
    }
