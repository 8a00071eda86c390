"""One line per round while a run goes on, and its rows afterwards."""

import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from logging import getLogger
from math import isnan
from pathlib import Path
from typing import Any, get_args

from flwr.app import ArrayRecord, MetricRecord

from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.ledger import Ledger
from flwr_splitfc.exchange.server.traffic import traffic_to_json

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
Row = dict[str, Any]

_ACCURACY_KEYS = ("accuracy", "eval_acc")
_TABLE_ROWS = 12

logger = getLogger("flwr")


class Progress:
    """Watches a run through its ledger and its evaluations.

    The log record of a round's line holds the round's row, too, as ``progress_row``,
    and ``num_rounds``.

    Parameters
    ----------
    num_rounds : int
        Rounds that the run will take.
    ledger : Ledger
        Where the run's traffic is entered.
    evaluate_every : int (default: 1)
        Evaluate every so many rounds, and after the last.

    Attributes
    ----------
    rows : list of dict
        One per finished round: ``round``, ``loss`` (training, mean over samples),
        ``accuracy`` (of `evaluate_fn`, or else of the devices; None in a round without
        evaluation), ``device_accuracy`` (of the devices, None unless `evaluate_fn` gave
        the other one), ``steps``, ``uplink_bytes``, ``downlink_bytes``,
        ``uplink_bits_per_entry``, ``downlink_bits_per_entry``, ``seconds``,
        ``failures`` (by device, why); bytes of training and evaluation together,
        everything counted. ``links`` has, for ``train`` and for ``evaluate``, by device
        what crossed its link: bytes up, bytes down, round trips.
    """

    def __init__(
        self, num_rounds: int, ledger: Ledger, *, evaluate_every: int = 1
    ) -> None:
        if evaluate_every < 1:
            raise ValueError(f"evaluate_every is {evaluate_every}, wanted 1 or more")
        self.num_rounds = num_rounds
        self.ledger = ledger
        self.evaluate_every = evaluate_every
        self.rows: list[Row] = []
        self._started = self._round_started = time.monotonic()
        self._resumed_rows = 0

    def resume(self) -> None:
        """Take the rows so far as a former process's: time starts now."""
        self._resumed_rows = len(self.rows)
        self._started = self._round_started = time.monotonic()

    def due(self, server_round: int) -> bool:
        """Whether `server_round` evaluates."""
        return (
            server_round % self.evaluate_every == 0 or server_round == self.num_rounds
        )

    def watch(
        self,
        evaluate_fn: EvaluateFn | None,
        on_devices: Callable[[], Mapping[str, Any] | None] = dict,
    ) -> EvaluateFn:
        """An ``evaluate_fn`` for `Strategy.start`, Flower's own hook at the end of a round.

        Parameters
        ----------
        evaluate_fn : callable, optional
            Called before the first round and in rounds that are due.
        on_devices : callable, optional
            Gives what the devices' evaluation found in the round.
        """

        def end_of_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = (
                evaluate_fn(server_round, arrays)
                if evaluate_fn and self.due(server_round)
                else None
            )
            if server_round == 0:
                self._started = self._round_started = time.monotonic()
            else:
                self.end_round(server_round, metrics or {}, on_devices() or {})
            return metrics

        return end_of_round

    def end_round(
        self,
        server_round: int,
        metrics: Mapping[str, Any],
        on_devices: Mapping[str, Any],
    ) -> None:
        """Enter a finished round and log its line; `metrics`, and those found `on_devices`, may hold an accuracy."""
        found = [
            accuracy
            for each in (metrics, on_devices)
            if (accuracy := _accuracy(each)) is not None
        ]
        accuracy, device_accuracy = (*found, None, None)[:2]
        train, evaluate = (
            self.ledger.of(server_round, "train"),
            self.ledger.of(server_round, "evaluate"),
        )
        now = time.monotonic()
        self.rows.append(
            {
                "round": server_round,
                "loss": None if isnan(train.loss) else train.loss,
                "accuracy": accuracy,
                "device_accuracy": device_accuracy,
                "steps": train.steps,
                "uplink_bytes": train.uplink_bytes.total()
                + evaluate.uplink_bytes.total(),
                "downlink_bytes": train.downlink_bytes.total()
                + evaluate.downlink_bytes.total(),
                "uplink_bits_per_entry": train.uplink_bits_per_entry,
                "downlink_bits_per_entry": train.downlink_bits_per_entry,
                "seconds": now - self._round_started,
                "failures": self.ledger.failures(server_round),
                "links": {
                    purpose: self.ledger.links(server_round, purpose)
                    for purpose in get_args(Purpose)
                },
            }
        )
        self._round_started = now
        logger.info(
            "%s",
            self._line(),
            extra={"progress_row": self.rows[-1], "num_rounds": self.num_rounds},
        )

    def _line(self) -> str:
        row = self.rows[-1]
        done = len(self.rows) - self._resumed_rows
        left_s = (
            (time.monotonic() - self._started)
            / done
            * (self.num_rounds - len(self.rows))
        )
        megabytes = (
            sum(
                (r["uplink_bytes"] or 0) + (r["downlink_bytes"] or 0) for r in self.rows
            )
            / 1e6
        )
        bits = [
            _cell(row[f"{way}link_bits_per_entry"], ".3f") for way in ("up", "down")
        ]
        on_devices = (
            f", on devices {row['device_accuracy']:.1%}"
            if row["device_accuracy"] is not None
            else ""
        )
        return (
            f"round {row['round']}/{self.num_rounds} | loss {_cell(row['loss'], '.4f')} | "
            f"accuracy {_cell(row['accuracy'], '.1%')}{on_devices} | bits/entry up {bits[0]} down {bits[1]} | "
            f"{megabytes:.2f} MB | ETA {timedelta(seconds=round(left_s))}"
        )

    def table(self) -> str:
        """The run in a few lines: evaluated rounds, or evenly spaced ones where there are more."""
        rows = [row for row in self.rows if row["accuracy"] is not None] or self.rows
        step = max(1, -(-len(rows) // _TABLE_ROWS))
        shown = rows[::-1][::step][::-1]
        on_devices = any(row.get("device_accuracy") is not None for row in rows)
        header = (
            f"{'round':>7} {'loss':>9} {'accuracy':>9}{' on devices' * on_devices} {'up b/entry':>11} "
            f"{'down b/entry':>13} {'MB so far':>10}"
        )
        lines = [header, "-" * len(header)]
        for row in shown:
            so_far = [r for r in self.rows if (r["round"] or 0) <= (row["round"] or 0)]
            megabytes = (
                sum(
                    (r["uplink_bytes"] or 0) + (r["downlink_bytes"] or 0)
                    for r in so_far
                )
                / 1e6
            )
            device_accuracy = (
                f" {_cell(row.get('device_accuracy'), '.1%'):>10}" * on_devices
            )
            lines.append(
                f"{row['round']:>7} {_cell(row['loss'], '.4f'):>9} {_cell(row['accuracy'], '.1%'):>9}{device_accuracy} "
                f"{_cell(row['uplink_bits_per_entry'], '.3f'):>11} "
                f"{_cell(row['downlink_bits_per_entry'], '.3f'):>13} {megabytes:>10.2f}"
            )
        return "\n".join(lines)

    def write(self, path: Path, **about: Any) -> None:
        """Write `about` (run-config, seed, ...), ``traffic``, ``devices`` and the rows, under ``rounds``, as JSON.

        ``traffic`` has the totals of training and of evaluation: sessions, steps,
        entries at the cut, and the bytes of each direction by kind. ``devices`` has, by
        name, what the sessions came to in which each trained at the cut: bits per
        entry, bytes by kind. The file is there whole or not at all.
        """
        traffic = {
            purpose: traffic_to_json(self.ledger.total(purpose))
            for purpose in get_args(Purpose)
        }
        devices = {
            device: trained.metrics()
            for device, trained in self.ledger.devices("train").items()
        }
        results = {**about, "traffic": traffic, "devices": devices, "rounds": self.rows}
        write_whole(path, results_text(results))


def results_text(results: Mapping[str, Any]) -> str:
    """A run's results as JSON, a line for each round."""
    rounds = ",\n".join(json.dumps(row) for row in results["rounds"])
    parts = {key: json.dumps(part, indent=1) for key, part in results.items()} | {
        "rounds": f"[\n{rounds}\n]"
    }
    return (
        "{\n"
        + ",\n".join(f"{json.dumps(key)}: {part}" for key, part in parts.items())
        + "\n}\n"
    )


def write_whole(path: Path, text: str) -> None:
    """Replace a file, made with its folders if missing; a process killed meanwhile leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _accuracy(metrics: Mapping[str, Any]) -> float | None:
    return next((float(metrics[key]) for key in _ACCURACY_KEYS if key in metrics), None)


def _cell(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
