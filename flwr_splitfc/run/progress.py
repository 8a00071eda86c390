"""The progress of a run: a line after each round, a table and a file at the end."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from itertools import islice
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

from flwr.app import ArrayRecord, MetricRecord

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.accounts.ledger import Ledger
from flwr_splitfc.exchange.server.accounts.traffic import Traffic, traffic_to_json
from flwr_splitfc.run.accuracy_warning import AccuracyWarning
from flwr_splitfc.run.columns import (
    last_known,
    shown_columns,
    table_text,
    terminal_table,
)
from flwr_splitfc.run.error_warnings import ErrorWarnings
from flwr_splitfc.run.loss_warning import LossWarning
from flwr_splitfc.run.results import results_text, write_whole
from flwr_splitfc.run.returned_metrics import metrics_of
from flwr_splitfc.run.rounds import ROUND_COLUMNS, Round, Standing, line_of, standings

EvaluateFn: TypeAlias = Callable[[int, ArrayRecord], MetricRecord | None]

ACCURACY_KEYS = ("accuracy", "eval_acc")
"""Names under which evaluation tells the accuracy of a run, a share."""

_LOSS_KEYS = ("loss", "eval_loss", "train_loss")
_COUNT_KEYS = {
    *Traffic().metrics(),
    "codec_seconds",
    "failures",
    "feature_error",
    "gradient_error",
}
_MOST_METRICS = 100
_MOST_METRICS_IN_LINE = 5
_MOST_TABLE_ROWS = 12

logger = getLogger("flwr")


class Finished(NamedTuple):
    """What has been finished of a run.

    One object, as Ctrl-C comes at any time: the rows and the arrays are always of the
    same round.

    Parameters
    ----------
    rounds : tuple of Round
    arrays : ArrayRecord or None
        What the last of them left; None before the first round of this process.
    """

    rounds: tuple[Round, ...] = ()
    arrays: ArrayRecord | None = None


class Progress:
    """The rounds of a run so far, taken from its ledger and its evaluations.

    The log record of a round's line holds ``num_rounds``, too, and ``standing``, a
    `Standing`.

    Parameters
    ----------
    num_rounds : int
        Rounds that the run will take.
    ledger : Ledger
        Where the run's traffic is entered.
    evaluate_every : int (default: 1)
        Evaluate every so many rounds, and after the last.
    codec : CutCodec, optional
        Of the cut, for warnings where its error is too large to learn.
    output_codec : CutCodec, optional
        Of the second cut, where devices have the last layers.

    Attributes
    ----------
    finished : Finished
        The finished rounds, and what the last one left.
    """

    def __init__(
        self,
        num_rounds: int,
        ledger: Ledger,
        *,
        evaluate_every: int = 1,
        codec: CutCodec | None = None,
        output_codec: CutCodec | None = None,
    ) -> None:
        if evaluate_every < 1:
            raise ValueError(f"evaluate_every is {evaluate_every}, wanted 1 or more")
        self.num_rounds = num_rounds
        self.ledger = ledger
        self.evaluate_every = evaluate_every
        self.finished = Finished()
        self._standing: Standing | None = None
        self._warnings = ErrorWarnings(codec, output_codec) if codec else None
        self._loss_warning = LossWarning()
        self._accuracy_warning = AccuracyWarning()
        self._resumed_rounds = 0
        self._start_clock()

    def _start_clock(self) -> None:
        self._started = time.monotonic()
        self._round_started = self._started

    @property
    def rounds(self) -> list[Round]:
        """The finished rounds."""
        return list(self.finished.rounds)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The finished rounds as ``results.json`` has them; see `Round`."""
        return [done.to_json() for done in self.rounds]

    def resume(self, rounds: Iterable[Round]) -> None:
        """Take the rounds of a former process; the time of this one starts now."""
        self.finished = Finished(tuple(rounds))
        self._standing = last_known(standings(self.rounds))
        self._resumed_rounds = len(self.rounds)
        self._start_clock()

    def due(self, server_round: int) -> bool:
        """Return whether `server_round` evaluates."""
        last = server_round == self.num_rounds
        return last or server_round % self.evaluate_every == 0

    def watch(
        self,
        evaluate_fn: EvaluateFn | None,
        on_devices: Callable[[], Mapping[str, Any] | None] = dict,
    ) -> EvaluateFn:
        """Make an ``evaluate_fn`` for `Strategy.start`, which ends the rounds here.

        Flower calls it before the first round, and at the end of each.

        Parameters
        ----------
        evaluate_fn : callable, optional
            Called before the first round and in rounds that are due.
        on_devices : callable, optional
            Returns what the devices' evaluation found in the round.

        Raises
        ------
        ValueError
            By what is returned, if `evaluate_fn` returns no metrics.
        """

        def end_of_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = None
            if evaluate_fn is not None and self.due(server_round):
                metrics = _found(evaluate_fn(server_round, arrays))
            if server_round == 0:
                self._start_clock()
            else:
                found = on_devices() or {}
                self.end_round(server_round, metrics or {}, found, arrays)
            return metrics

        return end_of_round

    def end_round(
        self,
        server_round: int,
        metrics: Mapping[str, Any],
        device_metrics: Mapping[str, Any],
        arrays: ArrayRecord | None = None,
    ) -> None:
        """Enter a finished round and log its line.

        Parameters
        ----------
        server_round : int
        metrics, device_metrics : mapping
            What was found on the server and on devices; each may hold an accuracy.
        arrays : ArrayRecord, optional
            What the round has left; by default what the one before did.
        """
        accuracy, device_accuracy = _accuracies(metrics, device_metrics)
        now = time.monotonic()
        done = Round.of(
            self.ledger,
            server_round,
            accuracy=accuracy,
            device_accuracy=device_accuracy,
            seconds=now - self._round_started,
            evaluation=_evaluation(metrics, device_metrics),
        )
        self._round_started = now
        before = self.finished
        left = before.arrays if arrays is None else arrays
        self.finished = Finished((*before.rounds, done), left)
        self._standing = Standing.after(done, self._standing)
        about = {"num_rounds": self.num_rounds, "standing": self._standing}
        logger.info("%s", self._line(self._standing), extra=about)
        if self._warnings is not None:
            self._warnings.check(done)
        self._loss_warning.check(self.rounds)
        self._accuracy_warning.check(done)

    def _line(self, standing: Standing) -> str:
        done = standing.last
        parts = [f"round {done.round}/{self.num_rounds}{line_of(standing)}"]
        parts += _evaluation_parts(done)
        left = timedelta(seconds=round(self._left_s()))
        parts.append(f"ETA {left}")
        return " | ".join(parts)

    def _left_s(self) -> float:
        """Estimate how long the rounds to come will take: as long as those so far."""
        elapsed_s = time.monotonic() - self._started
        round_s = elapsed_s / (len(self.rounds) - self._resumed_rounds)
        return round_s * (self.num_rounds - len(self.rounds))

    def table(self) -> str:
        """Return the run as a table: the evaluated rounds, if there are any.

        Where there are many, it has some of them, evenly spaced. The last round is
        always there: a run may be stopped in one without evaluation.
        """
        every = standings(self.rounds)
        evaluated = [row for row in every[:-1] if row.last.accuracy is not None]
        rows = every
        if evaluated:
            last = every[-1]
            rows = [*evaluated, last]
        columns = shown_columns(ROUND_COLUMNS, rows)
        table = terminal_table(columns, _thinned(rows))
        return table_text(table)

    def write(self, path: Path, **about: Any) -> None:
        """Write ``results.json``; the file is there whole or not at all.

        Parameters
        ----------
        path : Path
        **about
            What else the file shall hold, such as the run-config and the seed.

        Notes
        -----
        Beside `about` the file holds ``traffic``, ``devices`` and ``rounds``.
        ``traffic`` has the totals of training and of evaluation: sessions, steps,
        entries at the cut, and the bytes of each direction by kind. ``devices`` has, by
        name, what the sessions came to in which each trained at the cut: bits per
        entry, errors, bytes by kind. ``rounds`` has a row for each `Round`.
        """
        traffic = {
            purpose: traffic_to_json(self.ledger.total(purpose))
            for purpose in get_args(Purpose)
        }
        devices = {
            device: trained.metrics()
            for device, trained in self.ledger.devices("train").items()
        }
        parts = {"traffic": traffic, "devices": devices, "rounds": self.rows}
        write_whole(path, results_text({**about, **parts}))


def _found(returned: object) -> MetricRecord | None:
    """Return what an ``evaluate_fn`` found; Flower's old ones return a pair."""
    if returned is None or isinstance(returned, MetricRecord):
        return returned
    function = "evaluate_fn(server_round, arrays)"
    # a MetricRecord takes lists of numbers, too
    return MetricRecord(metrics_of(function, returned, with_lists=True))


def _accuracies(
    metrics: Mapping[str, Any], device_metrics: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """Return a round's accuracy, and that of devices where it is another."""
    central = _accuracy(metrics)
    on_devices = _accuracy(device_metrics)
    if central is None:
        return on_devices, None
    return central, on_devices


def _accuracy(metrics: Mapping[str, Any]) -> float | None:
    for key in ACCURACY_KEYS:
        # devices may report a list
        if isinstance(metrics.get(key), int | float):
            return float(metrics[key])
    return None


def _evaluation(
    metrics: Mapping[str, Any], device_metrics: Mapping[str, Any]
) -> dict[str, float]:
    """Return the numbers that an app's evaluation found, the server's first.

    The exchange's counts, which come with those of devices, are none of them.
    """
    on_devices = {
        key: value for key, value in device_metrics.items() if key not in _COUNT_KEYS
    }
    numbers = {
        key: float(value)
        for key, value in {**metrics, **on_devices, **metrics}.items()
        # the row has the accuracy under its own name
        if key != "accuracy" and isinstance(value, int | float)
    }
    return dict(islice(numbers.items(), _MOST_METRICS))


def _evaluation_parts(done: Round) -> list[str]:
    """Return what the line of a round says of its evaluation, in further parts."""
    # a line has one accuracy and one loss, training's
    shown = {
        key: value
        for key, value in done.evaluation.items()
        if key not in (*ACCURACY_KEYS, *_LOSS_KEYS)
    }
    parts = [f"{key} {value:.4g}" for key, value in shown.items()]
    return parts[:_MOST_METRICS_IN_LINE]


def _thinned(rows: list[Standing]) -> list[Standing]:
    """Return every so many of the rows, the last one among them."""
    step = max(1, math.ceil(len(rows) / _MOST_TABLE_ROWS))
    first = (len(rows) - 1) % step
    return rows[first::step]
