"""The ledger of bytes: what crossed the wire, by direction and kind, per round."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.devices import name_order

UPLINK_KINDS = (
    "features",
    "labels",
    "state",
    "model",
    "framing",
    "resent",
    "output_gradient",
)
DIGEST_BITS = 128
DOWNLINK_KINDS = ("gradient", "logits", "state", "model", "framing", "resent", "output")


@dataclass
class Traffic:
    """Counts of one session, or the sum over many.

    `uplink_bytes` and `downlink_bytes` are by kind. "framing" is what the exchange's
    frames hold beside the other kinds, with gRPC's five bytes a frame; HTTP/2 and TCP
    headers are not in it. "resent" is whole frames that were sent again after a
    connection broke, `reconnects` how often one was opened again. `round_trips` counts
    frames with their answers, and one for a Flower message with its reply. `loss_rows`
    are the samples that `loss_sum` is over: where devices have the last layers, those
    of the replies. `entries` are those of the features, `output_entries` those of the
    output at a second cut. `link_seconds` are those in which frames of steps and
    predictions were on their way, up or down, round trips included: what the device
    waited for their answers less what the server worked on them; 0 where frames travel
    in messages, or the device did not tell. `digest` is of all payloads (features,
    labels, gradients, outputs) in their order within a session; over sessions it adds
    up, so that their order does not show.
    """

    sessions: int = 0
    reconnects: int = 0
    round_trips: int = 0
    steps: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    entries: int = 0
    output_entries: int = 0
    device_codec_seconds: float = 0.0
    server_codec_seconds: float = 0.0
    link_seconds: float = 0.0
    uplink_bytes: Counter[str] = field(default_factory=Counter)
    downlink_bytes: Counter[str] = field(default_factory=Counter)
    digest: int = 0

    def add(self, other: "Traffic") -> None:
        """Add another session's counts to these."""
        self.sessions += other.sessions
        self.reconnects += other.reconnects
        self.round_trips += other.round_trips
        self.steps += other.steps
        self.rows += other.rows
        self.loss_sum += other.loss_sum
        self.loss_rows += other.loss_rows
        self.entries += other.entries
        self.output_entries += other.output_entries
        self.device_codec_seconds += other.device_codec_seconds
        self.server_codec_seconds += other.server_codec_seconds
        self.link_seconds += other.link_seconds
        self.uplink_bytes.update(other.uplink_bytes)
        self.downlink_bytes.update(other.downlink_bytes)
        self.digest = (self.digest + other.digest) % 2**DIGEST_BITS

    @property
    def uplink_bits_per_entry(self) -> float:
        """Bits of encoded features per entry of the B x D matrices sent; 0.0 before the first."""
        return 8 * self.uplink_bytes["features"] / self.entries if self.entries else 0.0

    @property
    def downlink_bits_per_entry(self) -> float:
        """Bits of encoded gradients per entry of the B x D matrices received; 0.0 before the first."""
        return (
            8 * self.downlink_bytes["gradient"] / self.entries if self.entries else 0.0
        )

    @property
    def uplink_output_bits_per_entry(self) -> float:
        """Bits of encoded gradients of the output per entry of the outputs; 0.0 before the first."""
        return (
            8 * self.uplink_bytes["output_gradient"] / self.output_entries
            if self.output_entries
            else 0.0
        )

    @property
    def downlink_output_bits_per_entry(self) -> float:
        """Bits of encoded outputs per entry of the outputs; 0.0 before the first."""
        return (
            8 * self.downlink_bytes["output"] / self.output_entries
            if self.output_entries
            else 0.0
        )

    @property
    def loss(self) -> float:
        """The mean training loss over the samples; NaN before the first."""
        return self.loss_sum / self.loss_rows if self.loss_rows else float("nan")

    def metrics(self) -> dict[str, int | float]:
        """All counts under the names that Flower's `Result` shows; bytes in bytes, times in seconds."""
        return {
            "sessions": self.sessions,
            "reconnects": self.reconnects,
            "round_trips": self.round_trips,
            "steps": self.steps,
            "num-examples": self.rows,
            "uplink_bytes": self.uplink_bytes.total(),
            "downlink_bytes": self.downlink_bytes.total(),
            "uplink_bits_per_entry": self.uplink_bits_per_entry,
            "downlink_bits_per_entry": self.downlink_bits_per_entry,
            "uplink_output_bits_per_entry": self.uplink_output_bits_per_entry,
            "downlink_output_bits_per_entry": self.downlink_output_bits_per_entry,
            "device_codec_seconds": self.device_codec_seconds,
            "server_codec_seconds": self.server_codec_seconds,
            "link_seconds": self.link_seconds,
            **{
                f"uplink_{kind}_bytes": self.uplink_bytes[kind] for kind in UPLINK_KINDS
            },
            **{
                f"downlink_{kind}_bytes": self.downlink_bytes[kind]
                for kind in DOWNLINK_KINDS
            },
        }


def traffic_to_json(traffic: Traffic) -> dict[str, Any]:
    """The counts as JSON holds them; `traffic_from_json` takes them back exactly."""
    ways = {
        "uplink_bytes": dict(traffic.uplink_bytes),
        "downlink_bytes": dict(traffic.downlink_bytes),
    }
    return {**vars(traffic), **ways, "digest": f"{traffic.digest:032x}"}


def traffic_from_json(counts: Mapping[str, Any]) -> Traffic:
    """What `traffic_to_json` was given."""
    ways = {way: Counter(counts[way]) for way in ("uplink_bytes", "downlink_bytes")}
    return Traffic(**{**counts, **ways, "digest": int(counts["digest"], 16)})


class Ledger:
    """The traffic of a run per round and purpose, and per device; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._traffic: dict[tuple[int, Purpose], Traffic] = {}
        self._devices: dict[tuple[str, Purpose], Traffic] = {}
        self._links: dict[tuple[int, Purpose], dict[str, list[int]]] = {}
        self._failures: dict[int, dict[str, str]] = {}

    def add(
        self,
        server_round: int,
        purpose: Purpose,
        traffic: Traffic,
        device: str | None = None,
    ) -> None:
        """Enter what one session, or one Flower message, moved."""
        with self._lock:
            self._traffic.setdefault((server_round, purpose), Traffic()).add(traffic)
            if device is not None:
                self._devices.setdefault((device, purpose), Traffic()).add(traffic)
                links = self._links.setdefault((server_round, purpose), {})
                moved = (
                    traffic.uplink_bytes.total(),
                    traffic.downlink_bytes.total(),
                    traffic.round_trips,
                )
                links[device] = [
                    a + b
                    for a, b in zip(links.get(device, [0, 0, 0]), moved, strict=True)
                ]

    def devices(self, purpose: Purpose | None = None) -> dict[str, Traffic]:
        """The sums of each device's sessions, for one purpose or for both (copies), in the order of their names."""
        totals: dict[str, Traffic] = {}
        with self._lock:
            for (device, entered_for), traffic in self._devices.items():
                if purpose in (None, entered_for):
                    totals.setdefault(device, Traffic()).add(traffic)
        return dict(sorted(totals.items(), key=lambda item: name_order(item[0])))

    def devices_to_json(self) -> list[tuple[str, Purpose, dict[str, Any]]]:
        """The sums of each device, for `restore_devices` of another ledger."""
        with self._lock:
            return [
                (*key, traffic_to_json(traffic))
                for key, traffic in self._devices.items()
            ]

    def restore_devices(
        self, sums: Iterable[tuple[str, Purpose, Mapping[str, Any]]]
    ) -> None:
        """Take the sums of each device from another ledger, whose rounds are entered without them."""
        with self._lock:
            self._devices = {
                (device, purpose): traffic_from_json(counts)
                for device, purpose, counts in sums
            }

    def links(self, server_round: int, purpose: Purpose) -> dict[str, list[int]]:
        """What crossed each device's link in a round: bytes up, bytes down, round trips."""
        with self._lock:
            return dict(self._links.get((server_round, purpose), {}))

    def add_failures(self, server_round: int, failures: Mapping[str, str]) -> None:
        """Enter which devices failed in a round, and why."""
        with self._lock:
            self._failures.setdefault(server_round, {}).update(failures)

    def failures(self, server_round: int) -> dict[str, str]:
        """By device, why it failed in a round."""
        with self._lock:
            return dict(self._failures.get(server_round, {}))

    def of(self, server_round: int, purpose: Purpose) -> Traffic:
        """The sum over one round's sessions (a copy)."""
        total = Traffic()
        with self._lock:
            total.add(self._traffic.get((server_round, purpose), Traffic()))
        return total

    def digest(self) -> str:
        """Of all payloads of the run: equal for two runs that sent the same bytes, in hexadecimal."""
        both = self.total("train")
        both.add(self.total("evaluate"))
        return f"{both.digest:032x}"

    def total(self, purpose: Purpose) -> Traffic:
        """The sum over all rounds so far."""
        total = Traffic()
        with self._lock:
            for (_, entered_for), traffic in self._traffic.items():
                if entered_for == purpose:
                    total.add(traffic)
        return total
