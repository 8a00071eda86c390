"""A run of a comparison: its settings, its name, and what it has left on disk."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import flwr_splitfc
from flwr_splitfc.compare.flower_app import Settings, digest_of
from flwr_splitfc.run.results import results_text, write_whole

Budget = tuple[float, float]
State = Literal["to do", "finished", "impossible", "failed"]

_HASH_DIGITS = 10
_REASON_LETTERS = 200
_NEEDS = re.compile(
    r"(up|down)link_bits=\S+ is too small[^;]*; the smallest that works is (\d+\.?\d*)"
)


@dataclass(frozen=True)
class Run:
    """One training run.

    Parameters
    ----------
    method : str
        What is compared: the name of the strategy's file.
    config : dict
        The complete run-config, but for the folders that `complete_config` adds.
    budget : (float, float), optional
        Bits per entry up and down; None where the method has no use for them.
    origin : str
        The app's files and the package's version, which are part of the run's identity.
    """

    method: str
    config: Settings
    budget: Budget | None
    origin: str

    @cached_property
    def id(self) -> str:
        """Readable, and another for any other setting, app or version."""
        whole = json.dumps([self.config, self.origin], sort_keys=True)
        budget = "" if self.budget is None else "-{:g}-{:g}".format(*self.budget)
        return f"{self.method}{budget}-seed{self.seed}-{hashlib.sha256(whole.encode()).hexdigest()[:_HASH_DIGITS]}"

    @property
    def seed(self) -> int:
        """The run's seed; 0 for an app without one."""
        return int(self.config.get("seed", 0))

    @property
    def label(self) -> str:
        """For people: method, budget and seed."""
        return f"{self.method} {budget_text(self.budget)} seed {self.seed}".replace(
            "  ", " "
        )

    @property
    def about(self) -> dict[str, Any]:
        """What of the run stands in its records."""
        identity = {
            "id": self.id,
            "method": self.method,
            "budget": self.budget,
            "seed": self.seed,
        }
        return {**identity, "origin": self.origin, "sources": package_digest()}


@dataclass(frozen=True)
class RunFolder:
    """Where a run leaves its log, its results or its reason to fail: ``runs/<run id>`` of a comparison."""

    path: Path

    @property
    def log(self) -> Path:
        """All output of the run's processes."""
        return self.path / "log.txt"

    @property
    def output(self) -> Path:
        """The app's own ``results-dir``."""
        return self.path / "output"

    @property
    def checkpoint(self) -> Path:
        """The app's ``checkpoint-dir``, while the run is not finished."""
        return self.path / "checkpoint"

    def complete_config(self, run: Run, *, checkpoints: bool) -> Settings:
        """The run-config that the app gets: the run's, with the folders that are this run's own."""
        folders: Settings = {"results-dir": str(self.output.resolve())}
        if "checkpoint-dir" in run.config:
            folders["checkpoint-dir"] = (
                str(self.checkpoint.resolve()) if checkpoints else ""
            )
        return {**run.config, **folders}

    def finish(self, results: dict[str, Any]) -> None:
        """Write the results of a run that went to its end."""
        write_whole(self.path / "results.json", results_text(results))

    def end(self, outcome: "Outcome") -> None:
        """Write why a run that is over has no results; only after a failure its checkpoint is still of use."""
        if outcome.state != "finished":
            failure = {"state": outcome.state, "reason": outcome.reason}
            write_whole(self.path / "failed.json", json.dumps(failure, indent=1) + "\n")
        if outcome.state != "failed" or "CheckpointError" in outcome.reason:
            shutil.rmtree(self.checkpoint, ignore_errors=True)

    def start(self) -> None:
        """Make the folder, and forget an earlier failure."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "failed.json").unlink(missing_ok=True)

    def outcome(self) -> "Outcome":
        """What there is by now."""
        if (results := _json(self.path / "results.json")) is not None:
            return Outcome("finished", results=results)
        if (failure := _json(self.path / "failed.json")) is not None:
            return Outcome(failure["state"], reason=failure["reason"])
        return Outcome("to do")


@dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    "impossible" is a budget that the codec cannot meet: the same at every try, and no
    failure.
    """

    state: State
    reason: str = ""
    results: dict[str, Any] | None = None

    @property
    def needs(self) -> str:
        """The smallest budget that works, where the run's is too small."""
        needs = dict(_NEEDS.findall(self.reason))
        return (
            "needs at least "
            + ", ".join(f"{bits} {way}" for way, bits in needs.items())
            if needs
            else self.reason
        )

    @property
    def summary(self) -> str:
        """The reason in a line."""
        text = " ".join(self.needs.split())
        return text if len(text) <= _REASON_LETTERS else f"{text[:_REASON_LETTERS]} ..."

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to run."""
        return self.state in ("finished", "impossible")


@cache
def package_digest() -> str:
    """A digest of this package's files, but for those that only report."""
    folder = Path(flwr_splitfc.__file__).parent
    names = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return digest_of(
        folder,
        (name for name in names if name.parts[0] not in ("compare", "command.py")),
    )


def budget_text(budget: Budget | None) -> str:
    """A budget for people; nothing for none."""
    return "" if budget is None else "{:g}/{:g}".format(*budget)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return dict(content)
