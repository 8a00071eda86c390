"""What a run comes to: bytes, bits per entry, and time on a link."""

from collections.abc import Iterable, Mapping
from math import floor
from typing import Any, NamedTuple

from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.exchange.server.traffic import DOWNLINK_KINDS, UPLINK_KINDS

Numbers = dict[str, float | None]

WAYS_AND_KINDS = [("uplink", kind) for kind in UPLINK_KINDS] + [
    ("downlink", kind) for kind in DOWNLINK_KINDS
]
_FLOAT32_BYTES = 4


class Point(NamedTuple):
    """Where a run stands after a round: what was moved so far, and how long that took on the link.

    `link_s` is None for runs of versions that did not write ``links`` into their rows.
    """

    round: int
    moved_bytes: int
    link_s: float | None
    accuracy: float | None


def points_of(results: Mapping[str, Any], link: RadioLink) -> list[Point]:
    """A point for each round of a run's ``results.json``."""
    points, moved_bytes, link_s = [], 0, 0.0
    timed = all("links" in row for row in results["rounds"])
    for row in results["rounds"]:
        moved_bytes += row["uplink_bytes"] + row["downlink_bytes"]
        link_s += link.round_s(row["links"]) if timed else 0.0
        points.append(
            Point(row["round"], moved_bytes, link_s if timed else None, row["accuracy"])
        )
    return points


def common_accuracy(all_results: Iterable[Mapping[str, Any]]) -> float | None:
    """The best accuracy that all runs reached, cut to a tenth of a percent; None where none was evaluated."""
    measured = [
        [row["accuracy"] for row in results["rounds"] if row["accuracy"] is not None]
        for results in all_results
    ]
    best = [max(accuracies) for accuracies in measured if accuracies]
    return floor(1000 * min(best)) / 1000 if best else None


def numbers_of(
    results: Mapping[str, Any], link: RadioLink, target: float | None = None
) -> Numbers:
    """What a run's ``results.json`` comes to.

    ``cut_ratio`` and ``total_ratio`` say how many times fewer bytes were moved than by
    the same run with float32 at the cut, or at both; None where nothing is split.
    ``target_bytes`` and ``target_link_s`` are what it took to the first evaluation with
    an accuracy of at least `target`; None where there was none.
    """
    train, evaluate = results["traffic"]["train"], results["traffic"]["evaluate"]
    kinds = {
        f"{way}_{kind}_bytes": train[f"{way}_bytes"].get(kind, 0)
        + evaluate[f"{way}_bytes"].get(kind, 0)
        for way, kind in WAYS_AND_KINDS
    }
    up, down = (
        sum(kinds[f"{way}_{kind}_bytes"] for of, kind in WAYS_AND_KINDS if of == way)
        for way in ("uplink", "downlink")
    )
    features, gradient = (
        train["uplink_bytes"].get("features", 0),
        train["downlink_bytes"].get("gradient", 0),
    )
    at_output = train["uplink_bytes"].get("output_gradient", 0) + train[
        "downlink_bytes"
    ].get("output", 0)
    cut = features + gradient + at_output
    float32_cut = (
        2 * _FLOAT32_BYTES * (train["entries"] + train.get("output_entries", 0))
    )
    sessions = train["sessions"] + evaluate["sessions"]
    points = points_of(results, link)
    accuracies = [point.accuracy for point in points if point.accuracy is not None]
    on_devices = [
        row["device_accuracy"]
        for row in results["rounds"]
        if row.get("device_accuracy") is not None
    ]
    reached = next(
        (
            p
            for p in points
            if target is not None and p.accuracy is not None and p.accuracy >= target
        ),
        None,
    )
    return {
        "accuracy": accuracies[-1] if accuracies else None,
        "device_accuracy": on_devices[-1] if on_devices else None,
        "rounds": len(points),
        "steps": train["steps"],
        "turns": sessions or results.get("run", {}).get("turns", 0),
        "uplink_bits_per_entry": 8 * features / train["entries"]
        if train["entries"]
        else None,
        "downlink_bits_per_entry": 8 * gradient / train["entries"]
        if train["entries"]
        else None,
        "cut_ratio": float32_cut / cut if cut else None,
        "total_ratio": (up + down - cut + float32_cut) / (up + down) if cut else None,
        "uplink_bytes": up,
        "downlink_bytes": down,
        **kinds,
        "seconds": sum(row["seconds"] for row in results["rounds"]),
        "link_s": points[-1].link_s if points else None,
        "target_bytes": reached.moved_bytes if reached else None,
        "target_link_s": reached.link_s if reached else None,
    }
