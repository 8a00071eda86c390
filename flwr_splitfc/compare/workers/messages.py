"""What a worker process and its parent tell each other: lines of JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from flwr_splitfc.compare.runs import Outcome, RunFolder
from flwr_splitfc.run.rounds import Round
from flwr_splitfc.settings import Scalar


@dataclass(frozen=True)
class Job:
    """A run to make.

    Parameters
    ----------
    folder : str
        Where it leaves its log and its results.
    config : dict
        The run-config that the app gets.
    about : dict
        What stands of the run in its results, its ``id`` among them.
    """

    folder: str
    config: dict[str, Scalar]
    about: dict[str, Any]

    @property
    def run_folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(Path(self.folder))

    @property
    def run_id(self) -> str:
        """The run's id."""
        return str(self.about["id"])

    def to_line(self) -> str:
        """Write the job for `from_line`."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Job":
        """Read a job."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class RoundReport:
    """A round of the run in hand that is finished.

    Parameters
    ----------
    finished : Round
    num_rounds : int
        How many the run will have.
    moved_bytes : int
        All bytes of the run so far, up and down.
    training_s : float
        How long its rounds so far took. Both count those before a checkpoint, too.
    """

    finished: Round
    num_rounds: int
    moved_bytes: int
    training_s: float


Report: TypeAlias = RoundReport | Outcome
"""What a worker tells of a run: rounds, and at the end its outcome."""


def report_to_line(report: Report) -> str:
    """Write a report for `report_from_line`; of an outcome, without the results."""
    told: dict[str, Any]
    if isinstance(report, RoundReport):
        told = {
            "row": report.finished.to_json(),
            "num_rounds": report.num_rounds,
            "moved_bytes": report.moved_bytes,
            "training_s": report.training_s,
        }
    else:
        told = {"state": report.state, "reason": report.reason}
    return json.dumps(told) + "\n"


def report_from_line(line: str) -> Report:
    """Read a report."""
    told = json.loads(line)
    if "row" in told:
        finished = Round.from_json(told.pop("row"))
        return RoundReport(finished, **told)
    return Outcome(told["state"], told["reason"])
