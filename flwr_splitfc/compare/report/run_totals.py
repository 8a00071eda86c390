"""What a finished run comes to: accuracy, bytes, bits per entry, time on a link.

With the entries at the cut ``E`` (features) and ``E_o`` (outputs, where devices
have the last layers), the bytes ``c`` of features, outputs and their gradients in
training, and all bytes ``t`` of the run,

    bits per entry  = 8 features / E  and  8 gradient / E,
    cut_ratio       = F / c,
    total_ratio     = (t - c + F) / t,      F = 2 * 4 (E + E_o),

where ``F`` is what the same run would have sent at the cut as float32: each entry
once up and once down.

A column of a comparison is added in this file alone: a property of `RunTotals`, and its
line in `RUN_COLUMNS`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from math import isfinite
from typing import Any, Literal, TypeAlias

from flwr_splitfc.callbacks.round_metric import RoundMetric
from flwr_splitfc.compare.report.points import Point, points_of, rounds_of
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.exchange.server.accounts.traffic import (
    DOWNLINK_KINDS,
    UPLINK_KINDS,
    Traffic,
    traffic_from_json,
)
from flwr_splitfc.run.columns import NO_VALUE, Column, last_known, megabytes, percent
from flwr_splitfc.run.rounds import Round

_FLOAT32_BYTES = 4
_ACCURACIES = ("accuracy", "device_accuracy")  # which have columns of their own


@dataclass(frozen=True)
class RunTotals:
    """What a run's ``results.json`` comes to.

    Parameters
    ----------
    results : mapping
        The content of the file.
    link : RadioLink
        The link on which times are worked out.
    target : float, optional
        The accuracy to which bytes and seconds are counted.
    """

    results: Mapping[str, Any]
    link: RadioLink
    target: float | None = None

    @cached_property
    def _rounds(self) -> list[Round]:
        return rounds_of(self.results)

    @cached_property
    def _points(self) -> list[Point]:
        return points_of(self._rounds, self.link)

    @cached_property
    def _train(self) -> Traffic:
        return traffic_from_json(self.results["traffic"]["train"])

    @cached_property
    def _evaluate(self) -> Traffic:
        return traffic_from_json(self.results["traffic"]["evaluate"])

    # -- accuracy

    @property
    def accuracy(self) -> float | None:
        """The last one that was measured."""
        return last_known(done.accuracy for done in self._rounds)

    @property
    def device_accuracy(self) -> float | None:
        """The last one that devices measured beside the server."""
        return last_known(done.device_accuracy for done in self._rounds)

    # -- other numbers of evaluation

    @cached_property
    def best_metric(self) -> RoundMetric | None:
        """What ``best-metric`` of the run-config names; None for an accuracy."""
        text = self.results.get("run_config", {}).get("best-metric", "")
        try:
            named = RoundMetric.parse(str(text))
        except ValueError:
            return None  # it names none
        return None if named.name in _ACCURACIES else named

    @property
    def metric(self) -> float | None:
        """The last value of `best_metric`; None where that is no finite number."""
        if self.best_metric is None:
            return None
        last = last_known(self.best_metric.of(self._rounds))
        return last if last is not None and isfinite(last) else None

    @property
    def evaluation_names(self) -> list[str]:
        """The names of the numbers that the app's evaluation returned."""
        entries = chain(*(done.evaluation.items() for done in self._rounds))
        numbers = (name for name, entry in entries if isinstance(entry, int | float))
        return list(dict.fromkeys(numbers))

    # -- what features give away

    @property
    def leakage(self) -> Mapping[str, Any] | None:
        """What the attack on the run's features came to; None without one."""
        return self.results.get("leakage")

    def leaked(self, score: str) -> float | None:
        """Return a score of the attack; None without one."""
        return self.leakage.get(score) if self.leakage else None

    # -- counts

    @property
    def rounds(self) -> int:
        """How many were made."""
        return len(self._rounds)

    @property
    def steps(self) -> int:
        """Mini-batches of training."""
        return self._train.steps

    @property
    def turns(self) -> int:
        """Sessions at the cut, or without one the messages to train and evaluate."""
        sessions = self._train.sessions + self._evaluate.sessions
        messages: int = self.results.get("run", {}).get("turns", 0)
        return sessions or messages

    # -- the cut

    @property
    def uplink_bits_per_entry(self) -> float | None:
        """Bits of features; None where nothing is split."""
        features = self._train.uplink_bytes["features"]
        return _ratio(8 * features, self._train.entries)

    @property
    def downlink_bits_per_entry(self) -> float | None:
        """Bits of the features' gradients; None where nothing is split."""
        gradient = self._train.downlink_bytes["gradient"]
        return _ratio(8 * gradient, self._train.entries)

    @property
    def feature_error(self) -> float | None:
        """The squared error of the features as the server saw them.

        It is relative to how they vary about their means; None where not measured. In
        U-shaped runs it is of the output's gradient where that was further off.
        """
        train = self._train
        return _ratio(train.feature_error_sum, train.feature_error_steps)

    @property
    def gradient_error(self) -> float | None:
        """The squared error of the gradients as devices saw them, relative to theirs.

        None where not measured. In U-shaped runs it is of the output where that was
        further off.
        """
        train = self._train
        return _ratio(train.gradient_error_sum, train.gradient_error_steps)

    @property
    def _cut_bytes(self) -> int:
        uplink = self._train.uplink_bytes
        downlink = self._train.downlink_bytes
        at_features = uplink["features"] + downlink["gradient"]
        at_output = downlink["output"] + uplink["output_gradient"]
        return at_features + at_output

    @property
    def _float32_cut_bytes(self) -> int:
        entries = self._train.entries + self._train.output_entries
        return 2 * _FLOAT32_BYTES * entries

    @property
    def cut_ratio(self) -> float | None:
        """How many times more bytes float32 would have moved at the cut."""
        return _ratio(self._float32_cut_bytes, self._cut_bytes)

    @property
    def total_ratio(self) -> float | None:
        """How many times more bytes the run would have moved with float32 at the cut.

        None where nothing is split.
        """
        if self._cut_bytes == 0:
            return None
        total = self.uplink_bytes + self.downlink_bytes
        return (total - self._cut_bytes + self._float32_cut_bytes) / total

    # -- all bytes, of training and of evaluation

    @cached_property
    def _uplink(self) -> Counter[str]:
        return self._train.uplink_bytes + self._evaluate.uplink_bytes

    @cached_property
    def _downlink(self) -> Counter[str]:
        return self._train.downlink_bytes + self._evaluate.downlink_bytes

    @property
    def uplink_bytes(self) -> int:
        """All bytes from devices."""
        return self._uplink.total()

    @property
    def downlink_bytes(self) -> int:
        """All bytes to devices."""
        return self._downlink.total()

    def uplink_bytes_of(self, kind: str) -> int:
        """Return the bytes of one kind from devices."""
        return self._uplink[kind]

    def downlink_bytes_of(self, kind: str) -> int:
        """Return the bytes of one kind to devices."""
        return self._downlink[kind]

    # -- times

    @property
    def seconds(self) -> float:
        """The time of the rounds on this machine."""
        return sum(done.seconds for done in self._rounds)

    @property
    def link_s(self) -> float | None:
        """The time of the rounds on the link."""
        return self._points[-1].link_s if self._points else None

    @cached_property
    def _at_target(self) -> Point | None:
        """The first evaluation that gave at least the target accuracy."""
        if self.target is None:
            return None
        for point in self._points:
            if point.accuracy is not None and point.accuracy >= self.target:
                return point
        return None

    @property
    def target_bytes(self) -> int | None:
        """All bytes that were moved until the target was reached."""
        return None if self._at_target is None else self._at_target.moved_bytes

    @property
    def target_link_s(self) -> float | None:
        """The time on the link until the target was reached."""
        return None if self._at_target is None else self._at_target.link_s


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


Part: TypeAlias = Literal["accuracy", "costs", "kinds"]
"""The parts of a comparison's tables; see `flwr_splitfc.compare.report.rows`."""


@dataclass(frozen=True)
class NumberColumn(Column[RunTotals]):
    """A number of a run; a table shows its mean over the seeds.

    Parameters
    ----------
    part : str, optional
        The part of the tables that has it; None for the CSV file alone.
    spread : bool
        Whether tables show its sample standard deviation, too.
    only_if_known : bool
        Whether tables have it only if a row has a value.
    about : str
        What the legend says of it.
    """

    part: Part | None = None
    spread: bool = False
    only_if_known: bool = False
    about: str = ""


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}"


_BITS = "{:.4f}".format
_TIMES = "{:.1f}".format
_SECONDS = "{:.0f}".format


def _megabytes_of_kind(number_bytes: float) -> str:
    return megabytes(number_bytes) if number_bytes else NO_VALUE


_BYTES_BY_KIND = [
    *(
        NumberColumn(
            f"uplink_{kind}_bytes",
            f"{kind} up",
            _megabytes_of_kind,
            of=partial(RunTotals.uplink_bytes_of, kind=kind),
            part="kinds",
        )
        for kind in UPLINK_KINDS
    ),
    *(
        NumberColumn(
            f"downlink_{kind}_bytes",
            f"{kind} down",
            _megabytes_of_kind,
            of=partial(RunTotals.downlink_bytes_of, kind=kind),
            part="kinds",
        )
        for kind in DOWNLINK_KINDS
    ),
]


def _leaked(score: str, heading: str, text: Callable[[float], str]) -> NumberColumn:
    return NumberColumn(
        score,
        f"leaked, {heading}",
        text,
        of=partial(RunTotals.leaked, score=score),
        part="accuracy",
        only_if_known=True,
    )


LEAKED_COLUMNS = [
    _leaked("ssim", "SSIM", "{:.3f}".format),
    _leaked("psnr", "PSNR, dB", "{:.1f}".format),
    _leaked("recovered", "tokens, %", _percent),
]

RUN_COLUMNS = [
    NumberColumn("accuracy", "accuracy, %", _percent, part="accuracy", spread=True),
    NumberColumn(
        "device_accuracy",
        "on devices, %",
        _percent,
        part="accuracy",
        spread=True,
        only_if_known=True,
        about="`on devices` is what devices found with features coded as for inference",
    ),
    NumberColumn(
        "metric",
        "metric",
        "{:.4g}".format,
        part="accuracy",
        spread=True,
        only_if_known=True,
    ),
    *LEAKED_COLUMNS,
    NumberColumn("rounds", "rounds"),
    NumberColumn("steps", "steps"),
    NumberColumn("turns", "turns"),
    NumberColumn("uplink_bits_per_entry", "bits/entry up", _BITS, part="costs"),
    NumberColumn("downlink_bits_per_entry", "bits/entry down", _BITS, part="costs"),
    NumberColumn(
        "feature_error",
        "error up, %",
        percent,
        part="costs",
        only_if_known=True,
        about=(
            "`error up` is the squared error of the features as the server saw them, "
            "relative to how they vary about their means, `error down` that of the "
            "gradients as devices saw them, relative to their size, "
            "both in one step in ten; in U-shaped runs of the output's gradient and of "
            "the output where these were further off"
        ),
    ),
    NumberColumn(
        "gradient_error", "error down, %", percent, part="costs", only_if_known=True
    ),
    NumberColumn("cut_ratio", "cut, times fewer", _TIMES, part="costs"),
    NumberColumn("total_ratio", "total, times fewer", _TIMES, part="costs"),
    NumberColumn("uplink_bytes", "MB up", megabytes, part="costs"),
    NumberColumn("downlink_bytes", "MB down", megabytes, part="costs"),
    *_BYTES_BY_KIND,
    NumberColumn("seconds", "run, s", _SECONDS, part="costs"),
    NumberColumn("link_s", "link, s", _SECONDS, part="costs"),
    NumberColumn("target_bytes", "MB to target", megabytes, part="costs"),
    NumberColumn("target_link_s", "link s to target", _SECONDS, part="costs"),
]
"""The numbers of a run, in the order of the CSV file and of the tables."""
