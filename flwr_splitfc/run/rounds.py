"""The rounds of a run, and the columns that show them.

A column is added in this file alone: a field of `Round`, which is its key in
``results.json``, its value in `Round.of`, and its line in `ROUND_COLUMNS`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isnan
from operator import attrgetter
from typing import Any, TypeAlias, get_args

from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.accounts.ledger import Ledger, LinkCounts
from flwr_splitfc.run.columns import (
    Column,
    last_known,
    megabytes,
    percent,
    shown_columns,
)
from flwr_splitfc.settings import check_scalar

RoundLinks: TypeAlias = Mapping[str, Mapping[str, LinkCounts]]
"""What crossed the devices' links in a round, by purpose and by device."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """A finished round of a run.

    Its fields are the keys of its row in ``results.json``.

    Bytes are those of training and of evaluation on devices together, everything
    counted.

    Parameters
    ----------
    round : int
        Its number, from 1.
    loss : float or None
        Of training, the mean over samples; None where no device told.
    accuracy : float or None
        Of the server's evaluation, or else of the devices'; None in a round without.
    device_accuracy : float or None
        Of the devices' evaluation, where `accuracy` is the server's.
    steps : int
        Mini-batches of training.
    uplink_bytes, downlink_bytes : int
    uplink_bits_per_entry, downlink_bits_per_entry : float
        Of the features and of their gradient in training, per entry of the features.
    feature_error, gradient_error : float or None
        The squared error with which they arrived, relative to how features vary about
        their means and to the gradient's own square; the mean over the steps that
        measured it, None where none did. With last layers on devices also of the
        output's gradient and of the output. See `Traffic`.
    seconds : float
        How long the round took.
    failures : mapping of str to str
        By device, why it failed.
    links : mapping
        For ``train`` and for ``evaluate``, by device what crossed its link: bytes up,
        bytes down, round trips, and of steps under way at once bytes up and down.
    evaluation : mapping of str to float
        The numbers that the app's evaluation returned, without its accuracy: at most
        a hundred, those of the server before those of devices. One may have the name of
        a field, such as ``loss``.
    """

    round: int
    loss: float | None
    accuracy: float | None
    device_accuracy: float | None = None
    steps: int
    uplink_bytes: int
    downlink_bytes: int
    uplink_bits_per_entry: float
    downlink_bits_per_entry: float
    feature_error: float | None = None
    gradient_error: float | None = None
    seconds: float
    failures: Mapping[str, str] = field(default_factory=dict)
    links: RoundLinks
    evaluation: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        ledger: Ledger,
        server_round: int,
        *,
        accuracy: float | None,
        device_accuracy: float | None,
        seconds: float,
        evaluation: Mapping[str, float],
    ) -> "Round":
        """Take a round from the ledger in which its traffic is entered."""
        train = ledger.of(server_round, "train")
        evaluate = ledger.of(server_round, "evaluate")
        uplink = train.uplink_bytes + evaluate.uplink_bytes
        downlink = train.downlink_bytes + evaluate.downlink_bytes
        return cls(
            round=server_round,
            loss=_unless_nan(train.loss),
            accuracy=accuracy,
            device_accuracy=device_accuracy,
            steps=train.steps,
            uplink_bytes=uplink.total(),
            downlink_bytes=downlink.total(),
            uplink_bits_per_entry=train.uplink_bits_per_entry,
            downlink_bits_per_entry=train.downlink_bits_per_entry,
            feature_error=_unless_nan(train.feature_error),
            gradient_error=_unless_nan(train.gradient_error),
            seconds=seconds,
            failures=ledger.failures(server_round),
            links={
                purpose: ledger.links(server_round, purpose)
                for purpose in get_args(Purpose)
            },
            evaluation=evaluation,
        )

    @property
    def moved_bytes(self) -> int:
        """All bytes that the round moved, up and down."""
        return self.uplink_bytes + self.downlink_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the round's row in ``results.json``."""
        row = {name: getattr(self, name) for name in _KEYS}
        if not self.evaluation:
            del row["evaluation"]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Round":
        """Read a row of ``results.json``, of this version or of 0.1.0.

        Raises
        ------
        ValueError, TypeError
            If it is none.
        """
        if not isinstance(row.get("links"), Mapping):
            raise ValueError("its rounds have no times on a link: run it again")
        known = {name: row[name] for name in _KEYS if name in row}
        for name in known.keys() - _MAPPINGS:
            check_scalar(name, known[name], _HINTS[name])
        for of_purpose in known["links"].values():
            for device, counts in of_purpose.items():
                _check_counts(device, counts)
        return cls(**known)


_HINTS = {declared.name: declared.type for declared in fields(Round)}
_KEYS = list(_HINTS)
_MAPPINGS = {"failures", "links", "evaluation"}
_MOST_ON_A_LINK = 2**63 - 1  # bytes, or round trips


def _check_counts(device: str, counts: LinkCounts) -> None:
    for count in counts:
        check_scalar(f"links of {device}", count, int)
        if not 0 <= count <= _MOST_ON_A_LINK:
            raise ValueError(
                f"links of {device} have a count that is not 0 to {_MOST_ON_A_LINK}"
            )


def _unless_nan(mean: float) -> float | None:
    return None if isnan(mean) else mean


@dataclass(frozen=True)
class Standing:
    """A run as it stands after a round.

    Parameters
    ----------
    last : Round
        The round.
    moved_bytes : int
        All bytes that the run has moved, up and down, this round's included.
    seconds : float
        How long its rounds took, those before a checkpoint among them.
    feature_error, gradient_error : float, optional
        Of the last round that measured them.
    """

    last: Round
    moved_bytes: int
    seconds: float
    feature_error: float | None = None
    gradient_error: float | None = None

    @classmethod
    def after(cls, last: Round, before: "Standing | None") -> "Standing":
        """Return how a run stands after a round, from how it stood before it."""
        if before is None:
            return cls(
                last,
                last.moved_bytes,
                last.seconds,
                last.feature_error,
                last.gradient_error,
            )
        return cls(
            last,
            before.moved_bytes + last.moved_bytes,
            before.seconds + last.seconds,
            last_known([before.feature_error, last.feature_error]),
            last_known([before.gradient_error, last.gradient_error]),
        )


def standings(rounds: Iterable[Round]) -> list[Standing]:
    """Return how a run stood after each of its rounds."""
    after_each: list[Standing] = []
    for last in rounds:
        before = after_each[-1] if after_each else None
        after_each.append(Standing.after(last, before))
    return after_each


@dataclass(frozen=True)
class RoundColumn(Column[Standing]):
    """A column of a run's table, and what the line of a round says of it.

    Without an `of` it shows the attribute `key` of the round.

    Parameters
    ----------
    in_line : str
        The part of the progress line, with ``{}`` for the value.
    """

    in_line: str = ""

    def value(self, row: Standing) -> Any:
        """Return the value after a round."""
        return getattr(row.last, self.key) if self.of is None else self.of(row)


def _on_devices(rows: Sequence[Standing]) -> bool:
    return any(row.last.device_accuracy is not None for row in rows)


def _measured(rows: Sequence[Standing]) -> bool:
    return any((row.feature_error, row.gradient_error) != (None, None) for row in rows)


def _error(share: float) -> str:
    return f"{percent(share)}%"


_PERCENT = "{:.1%}".format
_LOSS = "{:.4f}".format
_BITS = "{:.3f}".format

ROUND_COLUMNS = [
    RoundColumn("round", "round", width=7),
    RoundColumn("loss", "loss", _LOSS, width=9, in_line=" | loss {}"),
    RoundColumn("accuracy", "accuracy", _PERCENT, width=9, in_line=" | accuracy {}"),
    RoundColumn(
        "device_accuracy",
        "on devices",
        _PERCENT,
        shown=_on_devices,
        width=10,
        in_line=", on devices {}",
    ),
    RoundColumn(
        "uplink_bits_per_entry",
        "up b/entry",
        _BITS,
        width=11,
        in_line=" | bits/entry up {}",
    ),
    RoundColumn(
        "downlink_bits_per_entry", "down b/entry", _BITS, width=13, in_line=" down {}"
    ),
    RoundColumn(
        "feature_error",
        "up error",
        _error,
        of=attrgetter("feature_error"),
        shown=_measured,
        width=9,
        in_line=" | error {}",
    ),
    RoundColumn(
        "gradient_error",
        "down error",
        _error,
        of=attrgetter("gradient_error"),
        shown=_measured,
        width=11,
        in_line=" / {}",
    ),
    RoundColumn(
        "moved_bytes",
        "MB so far",
        megabytes,
        of=attrgetter("moved_bytes"),
        width=10,
        in_line=" | {} MB",
    ),
]
"""What the table at the end of a run shows, and the line of each round."""


def line_of(standing: Standing) -> str:
    """Write what the progress line says of a round."""
    columns = shown_columns(ROUND_COLUMNS, [standing])
    return "".join(column.in_line.format(column.text(standing)) for column in columns)
