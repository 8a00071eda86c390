"""What a run comes to: bytes, bits per entry, and time on a link."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr_splitfc.exchange.ledger import DOWNLINK_KINDS, UPLINK_KINDS
from flwr_splitfc.report.app import SettingsError

Numbers = dict[str, float | None]

WAYS_AND_KINDS = [("uplink", kind) for kind in UPLINK_KINDS] + [("downlink", kind) for kind in DOWNLINK_KINDS]
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class RadioLink:
    """A link between devices and server: Mbit/s up and down, and the round trip in milliseconds."""

    uplink_mbit_s: float = 10.0
    downlink_mbit_s: float = 50.0
    round_trip_ms: float = 40.0

    @classmethod
    def parse(cls, text: str) -> "RadioLink":
        """From ``UP/DOWN/ROUND_TRIP``."""
        try:
            up, down, round_trip = map(float, text.split("/"))
        except ValueError as error:
            raise SettingsError(f"a link is UP/DOWN/ROUND_TRIP in Mbit/s and ms, got {text!r}") from error
        if not (up > 0 and down > 0 and round_trip >= 0):
            raise SettingsError(f"a link has rates above 0, got {text!r}")
        return cls(up, down, round_trip)

    def seconds(self, uplink_bytes: float, downlink_bytes: float, round_trips: float) -> float:
        """How long the traffic takes, one thing after another.

        >>> RadioLink(10, 50, 40).seconds(1_250_000, 6_250_000, 100)
        6.0
        """
        bits_s = 8 * uplink_bytes / (self.uplink_mbit_s * 1e6) + 8 * downlink_bytes / (self.downlink_mbit_s * 1e6)
        return bits_s + round_trips * self.round_trip_ms / 1e3

    def __str__(self) -> str:
        return f"{self.uplink_mbit_s:g} Mbit/s up, {self.downlink_mbit_s:g} down, {self.round_trip_ms:g} ms"


def numbers_of(results: Mapping[str, Any], link: RadioLink) -> Numbers:
    """What a run's ``results.json`` comes to.

    ``cut_ratio`` and ``total_ratio`` say how many times fewer bytes were moved than by the same run with
    float32 at the cut, or at both; None where nothing is split. ``link_s`` counts a round trip for each mini-batch
    at the cut, two where devices have the last layers and train, and one for each turn of a device.
    """
    train, evaluate = results["traffic"]["train"], results["traffic"]["evaluate"]
    kinds = {
        f"{way}_{kind}_bytes": train[f"{way}_bytes"].get(kind, 0) + evaluate[f"{way}_bytes"].get(kind, 0)
        for way, kind in WAYS_AND_KINDS
    }
    up, down = (
        sum(kinds[f"{way}_{kind}_bytes"] for of, kind in WAYS_AND_KINDS if of == way) for way in ("uplink", "downlink")
    )
    features, gradient = train["uplink_bytes"].get("features", 0), train["downlink_bytes"].get("gradient", 0)
    output_entries = train.get("output_entries", 0)
    at_output = train["uplink_bytes"].get("output_gradient", 0) + train["downlink_bytes"].get("output", 0)
    cut, float32_cut = features + gradient + at_output, 2 * _FLOAT32_BYTES * (train["entries"] + output_entries)
    sessions = train["sessions"] + evaluate["sessions"]
    turns = sessions or results.get("run", {}).get("turns", 0)
    steps_at_cut = (1 + bool(output_entries)) * train["steps"] + evaluate["steps"] if sessions else 0
    accuracies = [row["accuracy"] for row in results["rounds"] if row["accuracy"] is not None]
    return {
        "accuracy": accuracies[-1] if accuracies else None,
        "rounds": len(results["rounds"]),
        "steps": train["steps"],
        "turns": turns,
        "uplink_bits_per_entry": 8 * features / train["entries"] if train["entries"] else None,
        "downlink_bits_per_entry": 8 * gradient / train["entries"] if train["entries"] else None,
        "cut_ratio": float32_cut / cut if cut else None,
        "total_ratio": (up + down - cut + float32_cut) / (up + down) if cut else None,
        "uplink_bytes": up,
        "downlink_bytes": down,
        **kinds,
        "seconds": sum(row["seconds"] for row in results["rounds"]),
        "link_s": link.seconds(up, down, turns + steps_at_cut),
    }
