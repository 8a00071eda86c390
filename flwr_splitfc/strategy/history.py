"""What has happened in a run, a line of JSON for each round."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.accounts.ledger import Ledger
from flwr_splitfc.exchange.server.accounts.traffic import (
    traffic_from_json,
    traffic_to_json,
)
from flwr_splitfc.run.progress import Progress
from flwr_splitfc.run.rounds import Round


@dataclass
class RoundMetrics:
    """The metrics of a round, as Flower's `Result` keeps them; each may be None.

    Parameters
    ----------
    train, evaluate : MetricRecord, optional
        What devices found in training and in evaluation.
    central : MetricRecord, optional
        What ``evaluate_fn`` found on the server.
    """

    train: MetricRecord | None = None
    evaluate: MetricRecord | None = None
    central: MetricRecord | None = None


class History:
    """The rounds so far: their metrics, traffic and progress rows.

    A line is made once. A checkpoint is one file, so each one writes all lines again.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(
        self,
        server_round: int,
        metrics: RoundMetrics,
        ledger: Ledger,
        progress: Progress,
    ) -> None:
        """Write a finished round; round 0 is the evaluation before the first."""
        line = {
            "round": server_round,
            "train": _as_dict(metrics.train),
            "evaluate": _as_dict(metrics.evaluate),
            "central": _as_dict(metrics.central),
            # the evaluation before the first round has no row
            "row": progress.rounds[-1].to_json() if server_round else None,
            "traffic": {
                purpose: traffic_to_json(ledger.of(server_round, purpose))
                for purpose in get_args(Purpose)
            },
        }
        self.lines.append(json.dumps(line))

    def restore(self, ledger: Ledger, progress: Progress) -> None:
        """Bring a new ledger and progress to where the old ones were.

        Raises
        ------
        Exception
            If the lines are none of a run's.
        """
        # now, or `fill` would fail at the end of the run
        self.fill(Result())
        rounds = []
        for line in map(json.loads, self.lines):
            for purpose, counts in line["traffic"].items():
                ledger.add(line["round"], purpose, traffic_from_json(counts))
            if line["row"] is not None:
                rounds.append(Round.from_json(line["row"]))
        progress.resume(rounds)

    def fill(self, result: Result) -> None:
        """Make `result` hold all rounds, under their own numbers."""
        records_by_kind = {
            "train": result.train_metrics_clientapp,
            "evaluate": result.evaluate_metrics_clientapp,
            "central": result.evaluate_metrics_serverapp,
        }
        # Flower numbered the rounds of this process from 1
        for records in records_by_kind.values():
            records.clear()
        for line in map(json.loads, self.lines):
            for kind, records in records_by_kind.items():
                if line[kind] is not None:
                    records[line["round"]] = MetricRecord(line[kind])


def _as_dict(metrics: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if metrics is None else dict(metrics)
