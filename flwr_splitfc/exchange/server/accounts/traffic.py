"""Counts of what sessions moved: bytes by direction and kind, steps, seconds."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

from flwr_splitfc.exchange.server.accounts.payload_digest import DIGEST_BITS
from flwr_splitfc.settings import check_scalar

UPLINK_KINDS = (
    "features",
    "labels",
    "state",
    "model",
    "envelope",
    "framing",
    "resent",
    "output_gradient",
    "validation",
)
DOWNLINK_KINDS = (
    "gradient",
    "logits",
    "state",
    "model",
    "envelope",
    "framing",
    "resent",
    "output",
)
# each kind has its place, also what did not move
_NO_UPLINK = dict.fromkeys(UPLINK_KINDS, 0)
_NO_DOWNLINK = dict.fromkeys(DOWNLINK_KINDS, 0)

MetricGroup = Literal["counts", "measured"]


def _count(metric: str | None = None) -> int:
    """Declare a count that is a metric, by the field's name or another."""
    declared: int = field(default=0, metadata={"group": "counts", "metric": metric})
    return declared


def _measured() -> float:
    """Declare a metric that the machine decides, such as a time."""
    declared: float = field(default=0.0, metadata={"group": "measured", "metric": None})
    return declared


@dataclass
class Traffic:
    """Counts of one session, or the sum over many.

    A count is declared here and nowhere else: sums, metrics and JSON follow from its
    field.

    Parameters
    ----------
    sessions : int
    reconnects : int
        How often a broken connection was opened again.
    round_trips : int
        Frames with their answers, and one for a Flower message with its reply. Open
        goes with another frame, and Close may go with the reply. Mini-batches that are
        under way at once share one, and so do frames that are sent again together.
    steps : int
        Mini-batches of training; in evaluation, of prediction.
    rows : int
        Samples in these mini-batches.
    predictions : int
        Mini-batches that were predicted in turns of training. Neither they nor their
        samples and entries are among those counted here.
    loss_sum : float
        The sum of the training loss over `loss_rows` samples. Where devices have the
        last layers, it comes with their replies.
    loss_rows : int
    feature_error_sum : float
        The sum over `feature_error_steps` steps of the features' error as the server
        decoded them, as devices say. Where the output's gradient goes up, too, it is
        that of whichever was further off in a step.
    feature_error_steps : int
    gradient_error_sum : float
        The sum over `gradient_error_steps` steps of the error of the features' gradient
        as devices decode it. Where the output goes down, too, likewise.
    gradient_error_steps : int
    entries : int
        Entries of the features' B x D matrices.
    output_entries : int
        Entries of the output's matrices, where the output is a second cut.
    device_codec_seconds : float
        How long the device encoded and decoded, as it says.
    server_codec_seconds : float
        How long the server decoded and encoded.
    link_seconds : float
        How long frames of steps and predictions were on their way, up or down, round
        trips included: what the device waited for their answers less what the server
        worked on them. 0 where frames travel in messages, or the device did not tell.
    uplink_bytes, downlink_bytes : Counter
        By kind. "model" is the arrays in Flower's messages, and "envelope" the rest of
        their content (`MessageMeter`). "framing" is what the exchange's frames hold
        beside the other kinds, with gRPC's five bytes a frame; HTTP/2 and TCP headers
        are not in it. "resent" is whole frames that were sent again after a connection
        broke. "validation" is features that were predicted on in turns of training.
    digest : int
        Of all payloads (features, labels, gradients, outputs) in their order within a
        session. Over sessions it adds up, so that their order does not show.
    """

    sessions: int = _count()
    reconnects: int = _count()
    round_trips: int = _count()
    steps: int = _count()
    rows: int = _count("num-examples")
    predictions: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    feature_error_sum: float = 0.0
    feature_error_steps: int = 0
    gradient_error_sum: float = 0.0
    gradient_error_steps: int = 0
    entries: int = 0
    output_entries: int = 0
    device_codec_seconds: float = _measured()
    server_codec_seconds: float = _measured()
    link_seconds: float = _measured()
    uplink_bytes: Counter[str] = field(default_factory=partial(Counter, _NO_UPLINK))
    downlink_bytes: Counter[str] = field(default_factory=partial(Counter, _NO_DOWNLINK))
    digest: int = 0

    def add(self, other: "Traffic") -> None:
        """Add the counts of `other` to these."""
        for name in _FIELDS:
            mine = getattr(self, name)
            theirs = getattr(other, name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, name, mine + theirs)
        self.digest %= 2**DIGEST_BITS

    @property
    def mini_batches(self) -> int:
        """All of them: of training and of prediction."""
        return self.steps + self.predictions

    @property
    def uplink_bits_per_entry(self) -> float:
        """Bits of encoded features per entry of the features; 0.0 before the first."""
        return bits_per_entry(self.uplink_bytes["features"], self.entries)

    @property
    def downlink_bits_per_entry(self) -> float:
        """Bits of encoded gradients per entry of the features; 0.0 before the first."""
        return bits_per_entry(self.downlink_bytes["gradient"], self.entries)

    @property
    def uplink_output_bits_per_entry(self) -> float:
        """Bits of the output's encoded gradients per entry of the output, likewise."""
        return bits_per_entry(self.uplink_bytes["output_gradient"], self.output_entries)

    @property
    def downlink_output_bits_per_entry(self) -> float:
        """Bits of encoded outputs per entry of the output; 0.0 before the first."""
        return bits_per_entry(self.downlink_bytes["output"], self.output_entries)

    @property
    def step_uplink_bytes(self) -> int:
        """Bytes of steps with a loss of the server's: features and labels."""
        return self.uplink_bytes["features"] + self.uplink_bytes["labels"]

    @property
    def step_downlink_bytes(self) -> int:
        """Bytes of gradients by features."""
        return self.downlink_bytes["gradient"]

    @property
    def loss(self) -> float:
        """The mean training loss over the samples; NaN before the first."""
        return _mean(self.loss_sum, self.loss_rows)

    @property
    def feature_error(self) -> float:
        """The mean squared error of the features that were measured; NaN for none.

        It is relative to how features vary: with 1.0 the server might as well know
        their means alone. Where the output's gradient goes up, too, the larger error of
        a step counts.
        """
        return _mean(self.feature_error_sum, self.feature_error_steps)

    @property
    def gradient_error(self) -> float:
        """The mean squared error of the gradients that were measured; NaN for none.

        It is relative to the gradient's own square, of the columns that were sent.
        Where the output goes down, too, the larger error of a step counts.
        """
        return _mean(self.gradient_error_sum, self.gradient_error_steps)

    def metrics(self) -> dict[str, int | float]:
        """Return the counts under the names that Flower's `Result` shows.

        Sizes are in bytes, times in seconds. Errors are there where some were measured.
        """
        return {
            **self._metrics_of("counts"),
            "uplink_bytes": self.uplink_bytes.total(),
            "downlink_bytes": self.downlink_bytes.total(),
            "uplink_bits_per_entry": self.uplink_bits_per_entry,
            "downlink_bits_per_entry": self.downlink_bits_per_entry,
            "uplink_output_bits_per_entry": self.uplink_output_bits_per_entry,
            "downlink_output_bits_per_entry": self.downlink_output_bits_per_entry,
            **self._errors(),
            **self._metrics_of("measured"),
            **_bytes_by_kind("uplink", UPLINK_KINDS, self.uplink_bytes),
            **_bytes_by_kind("downlink", DOWNLINK_KINDS, self.downlink_bytes),
        }

    def _errors(self) -> dict[str, float]:
        errors = {}
        if self.feature_error_steps:
            errors["feature_error"] = self.feature_error
        if self.gradient_error_steps:
            errors["gradient_error"] = self.gradient_error
        return errors

    def _metrics_of(self, group: MetricGroup) -> dict[str, int | float]:
        metrics = {}
        for declared in fields(self):
            if declared.metadata.get("group") == group:
                metric = declared.metadata["metric"] or declared.name
                metrics[metric] = getattr(self, declared.name)
        return metrics


_FIELDS = [declared.name for declared in fields(Traffic)]


def _mean(total: float, count: int) -> float:
    return total / count if count else float("nan")


def bits_per_entry(payload_bytes: int, entries: int) -> float:
    """Return the bits of a payload for each entry of a matrix; 0.0 without entries."""
    if entries == 0:
        return 0.0
    return 8 * payload_bytes / entries


def _bytes_by_kind(
    way: str, kinds: tuple[str, ...], counted: Counter[str]
) -> dict[str, int]:
    return {f"{way}_{kind}_bytes": counted[kind] for kind in kinds}


def traffic_to_json(traffic: Traffic) -> dict[str, Any]:
    """Return the counts as JSON holds them, for `traffic_from_json`."""
    counts = {name: getattr(traffic, name) for name in _FIELDS}
    counts["uplink_bytes"] = dict(traffic.uplink_bytes)
    counts["downlink_bytes"] = dict(traffic.downlink_bytes)
    # 128 bits are more than other readers of JSON keep of a number
    counts["digest"] = f"{traffic.digest:032x}"
    return counts


def traffic_from_json(counts: Mapping[str, Any]) -> Traffic:
    """Return the very counts that `traffic_to_json` was given.

    Counts that an older version did not write are zero.

    Raises
    ------
    ValueError, TypeError, LookupError
        If they are no counts.
    """
    traffic = Traffic(**counts)
    traffic.uplink_bytes = _counter_of(counts["uplink_bytes"])
    traffic.downlink_bytes = _counter_of(counts["downlink_bytes"])
    traffic.digest = int(counts["digest"], 16)
    for declared in fields(traffic):
        value = getattr(traffic, declared.name)
        if not isinstance(value, Counter):
            check_scalar(declared.name, value, declared.type)
    return traffic


def _counter_of(counts: Mapping[str, Any]) -> Counter[str]:
    for kind, count in counts.items():
        check_scalar(kind, count, int)
    return Counter(counts)
