"""What a comparison found, in a sentence."""

from collections.abc import Sequence
from itertools import chain

from flwr_splitfc.compare.report.rows import MethodRow
from flwr_splitfc.compare.report.run_totals import RUN_COLUMNS
from flwr_splitfc.run.columns import known, megabytes

_NUMBERS = {number.key: number for number in RUN_COLUMNS}


def headline(rows: Sequence[MethodRow], target: float | None) -> str:
    """Say which method moved the fewest bytes to the target, and what that costs.

    Where no accuracy was measured, say which is best by the runs' ``best-metric``. All
    numbers are means over the seeds.

    Parameters
    ----------
    rows : sequence of MethodRow
    target : float or None
        The accuracy to which bytes are counted.
    """
    evaluated = [row for row in rows if row.seeds and _accuracy(row) is not None]
    if not evaluated:
        return _without_accuracy(rows)
    best = max(evaluated, key=lambda row: _number(row, "accuracy"))
    reached = [row for row in evaluated if row.mean(_NUMBERS["target_bytes"])]
    if not reached or target is None:
        return f"The highest final accuracy is that of {best.label}, {_final(best)}."
    least = min(reached, key=_target_bytes)
    found = (
        f"{least.label} moved the fewest bytes to an accuracy of {target:.1%}, "
        f"{megabytes(_target_bytes(least))} MB{_others(least, reached)}. "
    )
    if best is least:
        return found + f"Its final accuracy is the highest, too, {_final(best)}."
    return found + (
        f"Its final accuracy is {_final(least)}; the highest is that of "
        f"{best.label}, {_final(best)}."
    )


def _without_accuracy(rows: Sequence[MethodRow]) -> str:
    """Say which method is best by the metric of all runs, or what that might be."""
    runs = [totals for row in rows for totals in row.totals]
    metrics = known({totals.best_metric for totals in runs})
    measured = [row for row in rows if row.mean(_NUMBERS["metric"]) is not None]
    if measured and len(metrics) == 1:
        (metric,) = metrics
        best_of = min if metric.better == "lowest" else max
        best = best_of(measured, key=_metric)
        return (
            f"The {metric.better} final {metric.name} is that of {best.label}, "
            f"{_metric(best):.4g}."
        )
    # the default is an accuracy
    named = sorted({metric.name for metric in metrics} - {"accuracy"})
    if named:
        why = "have no number for it" if len(named) == 1 else "not one for all"
        return (
            "No run measured an accuracy. As best-metric runs name "
            f"{', '.join(named)}, and {why}."
        )
    names = dict.fromkeys(chain(*(totals.evaluation_names for totals in runs)))
    if names:
        there = ", ".join(names)
        return (
            f"No run measured an accuracy. Evaluation gave {there}: name one as "
            "best-metric, and it has a column."
        )
    return "No run was evaluated."


def _others(least: MethodRow, reached: Sequence[MethodRow]) -> str:
    """Compare with the next best and with the most."""
    others = sorted((row for row in reached if row is not least), key=_target_bytes)
    if not others:
        return ""
    ends = dict.fromkeys([others[0].label, others[-1].label])
    by_label = {row.label: row for row in others}
    texts = []
    for label in ends:
        ratio = _target_bytes(by_label[label]) / _target_bytes(least)
        texts.append(f"{_two_digits(ratio)} times fewer than {label}")
    return ": " + ", and ".join(texts)


def _two_digits(ratio: float) -> str:
    rounded = float(f"{ratio:.2g}")
    return f"{rounded:g}"  # 130, where the former text is 1.3e+02


def _accuracy(row: MethodRow) -> float | None:
    return row.mean(_NUMBERS["accuracy"])


def _metric(row: MethodRow) -> float:
    return _number(row, "metric")


def _final(row: MethodRow) -> str:
    return f"{_number(row, 'accuracy'):.1%}"


def _target_bytes(row: MethodRow) -> float:
    return _number(row, "target_bytes")


def _number(row: MethodRow, key: str) -> float:
    return row.mean(_NUMBERS[key]) or 0.0
